"""Stage `promote`: register both models in MLflow, as `challenger`, and as `champion` if the gate opens.

Writes `reports/promote/`: promote.json (whether, and if not, why) and, where there was a champion to beat, the comparison
with it, as numbers and as a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import paths
from tasks.common import files
from tasks.config.params import Params
from tasks.paths import MODELS
from tasks.plots import interval_plot
from tasks.registry import model_comparison, model_registry
from tasks.registry.tracking import Store

DISTANCE = "poses.frechet_pose_distance_corrected"
REFUSED = {
    "COPIES": "the {model} model copies its training data.",
    "SPLIT-UNRELIABLE": "the split of the data does not allow a verdict on the {model} model.",
    "TOO-FEW": "there are too few examples for a verdict on the {model} model.",
}


@dataclass(frozen=True)
class Decision:
    """Whether the models may become champion, and if not, a sentence for each reason."""

    promote: bool
    reasons: list[str]


def decide(verdicts: Mapping[str, str], metrics: Mapping[str, float], objections: Sequence[str]) -> Decision:
    """The gate. Closed on any verdict but CLEAN for a model, on a Frechet pose distance that is absent, and on the
    objections from the comparison with the champion (see `ModelComparison.objections`; none where there is no champion).

    `verdicts`: model -> verdict. `metrics`: flat metrics.
    """
    reasons = [
        REFUSED[verdict].format(model=model)
        for model, verdict in verdicts.items()
        if model in MODELS and verdict in REFUSED
    ]
    if DISTANCE not in metrics:
        reasons.append("the Frechet pose distance could not be computed.")
    reasons += objections
    return Decision(not reasons, [reason[0].upper() + reason[1:] for reason in reasons])


def run(params: Params, root: Path) -> None:
    """Compare with the champion, decide and register; the challenger is never its own rival."""
    verdicts = files.read_json(root / paths.MEMORIZATION / "memorization.json")["verdicts"]
    metrics = files.read_json(root / paths.FIDELITY / "fidelity.json")["metrics"]
    store = Store(params.tracking, root)
    compared = model_comparison.run(params, root, store)
    objections = compared.objections(params.retrain.worse_category) if compared else []
    decision = decide(verdicts, metrics, objections)
    numbers = {}
    for model in MODELS:
        folder = paths.model_folder(root, model)
        card = model_registry.card_of(folder, verdicts.get(model, "absent"), metrics, decision.reasons)
        numbers[model] = store.register(model, folder, paths.model_sha256(root, model), card)
    if decision.promote:
        model_registry.crown(store, numbers)
    with files.new_folder(root / paths.PROMOTE) as folder:
        outcome = {"promote": decision.promote, "reasons": decision.reasons}
        if compared is not None:
            outcome["model_comparison"] = compared.as_dict()
            panels = [
                (f"{model}: challenger minus champion, kernel distance to held-out data", rows)
                for model in MODELS
                if (rows := compared.figure_rows(model))
            ]
            if panels:
                interval_plot.draw(folder / "model_comparison.png", panels, zero=True)
        files.write_json(folder / "promote.json", outcome)
