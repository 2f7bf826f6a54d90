"""Stage `promote`: register both models in MLflow, as `challenger`, and as `champion` if the gate opens.

Writes `reports/promote/promote.json`: whether, and if not, why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks import artifacts, files
from tasks.artifacts import MODELS
from tasks.params import Params
from tasks.tracking import Store

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


def decide(verdicts: Mapping[str, str], metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> Decision:
    """The gate. Closed on any verdict but CLEAN for a model, and on a Frechet pose distance that is absent, or worse
    than the champion's beyond both intervals.

    `verdicts`: model -> verdict. `metrics`, `champion`: flat metrics with `<name>`, `<name>_low`, `<name>_high`.
    """
    reasons = [
        REFUSED[verdict].format(model=model)
        for model, verdict in verdicts.items()
        if model in MODELS and verdict in REFUSED
    ]
    if DISTANCE not in metrics:
        reasons.append("the Frechet pose distance could not be computed.")
    elif champion is not None and metrics[f"{DISTANCE}_low"] > champion[f"{DISTANCE}_high"]:
        reasons.append(
            f"the Frechet pose distance ({metrics[DISTANCE]:.3g}) is worse than the champion's ({champion[DISTANCE]:.3g}) "
            "beyond the intervals."
        )
    return Decision(not reasons, [reason[0].upper() + reason[1:] for reason in reasons])


def run(params: Params, root: Path) -> None:
    """Decide and register; the champion that the challenger is compared with is never the challenger itself."""
    verdicts = files.read_json(root / "reports/memorization/memorization.json")["verdicts"]
    metrics = files.read_json(root / "reports/fidelity/fidelity.json")["metrics"]
    store = Store(params.tracking, root)
    digests = {model: artifacts.sha256(root, model) for model in MODELS}
    champion = store.champion("poses")
    rival = champion[1] if champion is not None and champion[0] != digests["poses"] else None
    decision = decide(verdicts, metrics, rival)
    aliases = ["challenger", "champion"] if decision.promote else ["challenger"]
    kept = {name: value for name, value in metrics.items() if name.startswith(DISTANCE)}
    for model, sha256 in digests.items():
        store.register(model, artifacts.folder(root, model), sha256, kept, aliases)
    with files.new_folder(root / "reports/promote") as folder:
        files.write_json(folder / "promote.json", {"promote": decision.promote, "reasons": decision.reasons})
