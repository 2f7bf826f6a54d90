"""Stage `promote_motion`: register the motion model in MLflow as `challenger`, and as `champion` if the gate opens.

The gate stays closed if the verdict of the copy test is not CLEAN, if there is no Frechet motion distance, if samples are not
nearer to held-out clips than both references, or if the champion is nearer beyond the interval. Both are compared on the same
held-out clips, with the seeds and categories of the challenger's samples. Writes `reports/promote_motion/promote.json`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from tasks import paths
from tasks.common import files, motion
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.metrics import trajectories
from tasks.models import sampler
from tasks.registry.clip_gate import another_champion, decide, difference, worse
from tasks.registry.promote import REFUSED
from tasks.registry.tracking import Store

DISTANCE = "frechet_motion_distance"


def objections(verdict: str, metrics: dict[str, float]) -> list[str]:
    """Why a motion model may not become champion, one sentence each, from its own figures."""
    reasons = []
    if verdict != "CLEAN":
        missed = "the copy test could have missed copies by the {model} model."
        reasons.append(REFUSED.get(verdict, missed).format(model="motion"))
    if DISTANCE not in metrics:
        return [*reasons, "the Frechet motion distance could not be computed."]
    for name, words in (("frames", "frames drawn independently"), ("joints", "joints independent of each other")):
        if metrics[DISTANCE] >= metrics.get(f"{DISTANCE}_{name}", float("inf")):
            reasons.append(f"its motion is no nearer to held-out clips than {words}.")
    return reasons


def run(params: Params, root: Path) -> None:
    """Compare with the champion, decide, and register the model."""
    quality = files.read_json(root / paths.MOTION_QUALITY / "motion_quality.json")
    store = Store(params.tracking, root)
    compared = _compared(params, root, store)
    verdict, metrics = quality["verdict"], quality["metrics"]
    reasons = objections(verdict, metrics) + worse(compared)
    outcome = decide(root, store, paths.MOTION, reasons, compared, verdict, metrics)
    with files.new_folder(root / paths.PROMOTE_MOTION) as report:
        files.write_json(report / "promote.json", outcome)


def _compared(params: Params, root: Path, store: Store) -> dict[str, float] | None:
    """How much farther the challenger's samples are from held-out clips than the champion's; None without another champion."""
    champion, choice = another_champion(root, store, paths.MOTION), params.motion.sample
    if champion is None:
        return None
    samples = ShardDataset(paths.sample_folder(root, paths.MOTION), SAMPLES)
    held_out = ShardDataset(root / paths.CLIPS, "val", "test")
    cond = champion.conditions([str(meta["category"]) for meta in samples.metas()])
    values = sampler.draw(
        champion, cond, choice, choice.seed, torch.arange(len(samples)), choice.batch,
        label="the champion's motion",
    )  # fmt: skip
    theirs = motion.from_features(values.numpy())
    return difference(
        *(trajectories.features(trajectories.fitted(clips)) for clips in (samples.clips(), theirs, held_out.clips()))
    )
