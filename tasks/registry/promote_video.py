"""Stage `promote_video`: register the video model in MLflow as `challenger`, and as `champion` if the gate opens.

The gate stays closed if the verdict of the copy test is not CLEAN, if people in the clips are no nearer to the poses asked for
than to others, if clips flicker as much as those whose frames know nothing of each other, or if the champion's clips are nearer
to held-out ones beyond the interval. Both are compared on the same conditions and seeds, in the pixels of small frames. Writes
`reports/promote_video/promote.json`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tasks import paths
from tasks.common import files
from tasks.config.params import Params
from tasks.dataset import frames
from tasks.dataset.shards import ShardDataset, resized
from tasks.dataset.splits import SAMPLES
from tasks.metrics.features import pixels
from tasks.models import inputs, sampler
from tasks.registry.clip_gate import another_champion, decide, difference, worse
from tasks.registry.promote import REFUSED
from tasks.registry.tracking import Store

SIDE = 16  # pixels of the frames that are compared


def objections(verdict: str, metrics: dict[str, float]) -> list[str]:
    """Why a video model may not become champion, one sentence each, from its own figures."""
    reasons = []
    if verdict != "CLEAN":
        missed = "the copy test could have missed copies by the {model} model."
        reasons.append(REFUSED.get(verdict, missed).format(model=paths.VIDEO))
    error, chance = (metrics.get(f"{SAMPLES}.{name}") for name in ("joint_error", "joint_error_chance"))
    if error is None or chance is None:
        reasons.append("nobody was found in its clips.")
    elif error >= chance:
        reasons.append("people in its clips are no nearer to the poses asked for than to others.")
    if metrics.get("apart.flicker", float("inf")) <= metrics[f"{SAMPLES}.flicker"]:
        reasons.append("its clips flicker as much as frames that know nothing of each other.")
    return reasons


def run(params: Params, root: Path) -> None:
    """Compare with the champion, decide, and register the model."""
    quality = files.read_json(root / paths.VIDEO_QUALITY / "video_quality.json")
    store = Store(params.tracking, root)
    compared = _compared(params, root, store)
    verdict, metrics = quality["verdict"], quality["metrics"]
    reasons = objections(verdict, metrics) + worse(compared)
    outcome = decide(root, store, paths.VIDEO, reasons, compared, verdict, metrics)
    with files.new_folder(root / paths.PROMOTE_VIDEO) as report:
        files.write_json(report / "promote.json", outcome)


def _compared(params: Params, root: Path, store: Store) -> dict[str, float] | None:
    """How much farther the challenger's clips are from held-out ones than the champion's; None without another champion."""
    champion, choice = another_champion(root, store, paths.VIDEO), params.video.sample
    if champion is None:
        return None
    samples = ShardDataset(paths.sample_folder(root, paths.VIDEO), SAMPLES)
    held_out = ShardDataset(root / paths.VIDEO_CLIPS, "val", "test")
    cond = champion.conditions([str(meta["category"]) for meta in samples.metas()], samples.clips())
    ids = torch.arange(len(samples))
    values = sampler.draw(champion, cond, choice, choice.seed, ids, choice.batch, label="the champion's clips")
    return difference(*map(_features, (frames.read(samples), inputs.as_clips(values), frames.read(held_out))))


def _features(clips: np.ndarray) -> np.ndarray:
    """Small frames of clips `[n, frames, s, s, 3]` as features `[n, d]`."""
    small = np.stack([[resized(SIDE, picture) for picture in clip] for clip in clips])
    return pixels(small.astype(np.float32).reshape(len(small), -1, SIDE, 3) / 255)
