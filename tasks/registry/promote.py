"""Stage `promote`: register the models in MLflow, as `challenger`, and as `champion` if the gate opens.

Writes `reports/promote/`: promote.json (the decision and its reasons) and, if there was a champion to beat, the comparison
with it as numbers and as a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import experiment, files
from tasks.config.params import Params
from tasks.paths import MODELS, UPSCALER
from tasks.plots import interval_plot
from tasks.registry import model_comparison, model_registry
from tasks.registry.model_comparison import ModelComparison
from tasks.registry.tracking import Store

DISTANCE = "poses.frechet_pose_distance_corrected"
EXPERIMENT = "Models of an experiment are not registered: `dvc exp apply` it, then run the stage promote."
REFUSED = {
    "COPIES": "the {model} model copies its training data.",
    "SPLIT-UNRELIABLE": "the split of the data does not allow a verdict on the {model} model.",
    "TOO-FEW": "there are too few examples for a verdict on the {model} model.",
}
# A LOW-POWER verdict found no copies, so it closes the gate only if many could have been missed.
MISSED = (
    "the memorization test of the {model} model misses too many copies: up to {share} of its samples may be copies."
)
WARNING = "The memorization test of the {model} model misses some copies: up to {share} of its samples may be copies."


@dataclass(frozen=True)
class Decision:
    """Whether the models may become champion, a sentence for each reason against it, and what to know if they do."""

    promote: bool
    reasons: list[str]
    warnings: list[str]


def decide(
    verdicts: Mapping[str, str],
    bounds: Mapping[str, float],
    largest_share: float,
    metrics: Mapping[str, float],
    objections: Sequence[str],
) -> Decision:
    """The gate. It stays closed if a model's verdict is neither CLEAN nor LOW-POWER, if there is no Frechet pose
    distance, and on objections; at LOW-POWER also if the share of copies may be larger than `largest_share`.

    `verdicts`: model -> verdict; `bounds`: model -> largest share of copies that the memorization test leaves possible.
    `metrics`: flat metrics. `objections`: sentences from the comparison with the champion (see `ModelComparison.objections`),
    empty if there is no champion.
    """
    reasons = [
        REFUSED[verdict].format(model=model)
        for model, verdict in verdicts.items()
        if model in MODELS and verdict in REFUSED
    ]
    warnings: list[str] = []
    for model in MODELS:
        if verdicts.get(model) == "LOW-POWER":
            bound = bounds.get(model, 1.0)
            missed = bound > largest_share
            (reasons if missed else warnings).append(
                (MISSED if missed else WARNING).format(model=model, share=f"{bound:.1%}")
            )
    if DISTANCE not in metrics:
        reasons.append("the Frechet pose distance could not be computed.")
    reasons += objections
    return Decision(not reasons, [reason[0].upper() + reason[1:] for reason in reasons], warnings)


def run(params: Params, root: Path) -> None:
    """Compare with the champion, decide, and register the models. A challenger is not compared with itself.

    The models of an experiment in a folder of its own are not registered.
    """
    memorization = files.read_json(root / paths.MEMORIZATION / "memorization.json")
    verdicts, measured = memorization["verdicts"], memorization.get("metrics", {})
    bounds = {model: measured[key] for model in MODELS if (key := f"{model}.share_bound") in measured}
    metrics = files.read_json(root / paths.FIDELITY / "fidelity.json")["metrics"]
    store = Store(params.tracking, root)
    comparison = model_comparison.run(params, root, store)
    objections = comparison.objections(params.retrain.worse_category) if comparison else []
    decision = decide(verdicts, bounds, params.memorization.largest_share, metrics, objections)
    if experiment.is_apart(root):  # several at once would take turns as champion
        decision = Decision(False, [*decision.reasons, EXPERIMENT], decision.warnings)
        _write(root, decision, comparison)
        return
    numbers = {}
    trained = paths.trained_models(root)
    for model in trained:
        folder = paths.model_folder(root, params.sampled(model))
        # The verdict on the pictures is about the enlarged ones.
        verdict = verdicts.get("pictures" if model == UPSCALER else model, "absent")
        how = None if model == UPSCALER else getattr(params.sample, model)
        card = model_registry.card_of(folder, verdict, metrics, decision.reasons, how, decision.warnings)
        numbers[model] = store.register(model, folder, paths.sha256(folder), card)
    if UPSCALER not in trained:
        model_registry.without_challenger(store, UPSCALER)
    if decision.promote:
        model_registry.make_champions(store, numbers)
    _write(root, decision, comparison)


def _write(root: Path, decision: Decision, comparison: ModelComparison | None) -> None:
    with files.new_folder(root / paths.PROMOTE) as folder:
        outcome: dict[str, Any] = asdict(decision)
        if comparison is not None:
            outcome["model_comparison"] = asdict(comparison)
            panels = [
                (f"{model}: challenger minus champion, kernel distance to held-out data", rows)
                for model in MODELS
                if (rows := comparison.figure_rows(model))
            ]
            if panels:
                interval_plot.draw(folder / "model_comparison.png", panels, zero=True)
        files.write_json(folder / "promote.json", outcome)
