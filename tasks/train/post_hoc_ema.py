"""Post-hoc EMA: averages of the weights that were not tracked, from stored snapshots of those that were.

Karras et al. 2024 (arXiv 2312.02696), section 3.1: a power average at one time is nearly a sum of power averages of other
widths at that and earlier times. So the width can be chosen after the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from diffusion_core.training import lr_schedule
from diffusion_core.training.ema import mix_averages, post_hoc_error, post_hoc_shares
from diffusion_core.training.lr_schedule import TrainConfig
from tasks.common import checkpoint
from tasks.common.errors import DataError

PREFIX = "power_"  # of the names of power averages


@dataclass(frozen=True)
class ComputedAverage:
    """The weights, from how many snapshots they were computed, and the error of their profile (`post_hoc_error`)."""

    weights: dict[str, Tensor]
    snapshots: int
    error: float


def average_name(width: float) -> str:
    """The name of the power average of a relative width."""
    return f"{PREFIX}{width:g}"


def snapshot_file(average: str, nimg: int) -> str:
    """The name of the file of an average at this number of images."""
    return f"{average}-{nimg:012d}.safetensors"


def snapshot_times(config: TrainConfig, interval: int, end: int) -> list[int]:
    """The images seen at which a training that ended at `end` stored snapshots: every `interval`, and at the end."""
    times = [nimg + batch for nimg, batch in lr_schedule.steps(config) if (nimg + batch) // interval > nimg // interval]
    return [*(nimg for nimg in times if nimg < end), end]


def compute(folder: Path, widths: Sequence[float], times: Sequence[int], width: float) -> ComputedAverage:
    """The power average of relative width `width` at the last of `times`, from the snapshots in a folder.

    `widths` and `times`: of the snapshots. Raises DataError if one of them is missing or damaged: without it the average would
    be another one.
    """
    snapshots = [
        (folder / snapshot_file(average_name(stored), nimg), nimg, stored) for nimg in times for stored in widths
    ]
    return _mixed(snapshots, times[-1], width)


def weights(folder: Path, width: float, images: int | None = None) -> dict[str, Tensor]:
    """The power average of relative width `width` at `images` (None: at the last snapshot) from `artifacts/<model>/snapshots`.

    It is the least-squares mixture of all snapshots up to there. Raises DataError if there are none. `model_file.save` makes it
    a model like any other.
    """
    stored = [(path, checkpoint.about(path)) for path in sorted(folder.glob(f"{PREFIX}*.safetensors"))]
    if not stored:
        raise DataError(f"There are no snapshots in {folder}: set power_averages and train again.")
    at = images or max(int(meta["images"]) for _, meta in stored)
    snapshots = [
        (path, int(meta["images"]), float(meta["average"].removeprefix(PREFIX)))
        for path, meta in stored
        if meta["images"] <= at
    ]
    return _mixed(snapshots, at, width).weights


def _mixed(snapshots: Sequence[tuple[Path, int, float]], at: int, width: float) -> ComputedAverage:
    """The average of a width at `at` images from snapshots (file, images seen, width)."""
    profiles = [(nimg, stored) for _, nimg, stored in snapshots]
    shares = post_hoc_shares(profiles, at, width)
    # The shares of the least-squares fit sum to one up to its error. What all averages have in common must not change by that
    # error: it is far larger than what they differ in.
    shares = shares / shares.sum()
    mixed = mix_averages((checkpoint.load(path)[0] for path, _, _ in snapshots), shares)
    return ComputedAverage(mixed, len(snapshots), post_hoc_error(profiles, at, width, shares))
