"""Averages of the weights that nobody tracked, made after the training from the snapshots of a few that were."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diffusion_core.training.ema import mix_averages, post_hoc_shares
from tasks.common import checkpoint
from tasks.common.errors import DataError


def weights(folder: Path, width: float, images: int | None = None) -> dict[str, Tensor]:
    """The power average of relative width `width` at `images` (null: the last snapshot) from `artifacts/<model>/snapshots`.

    The least-squares mixture of all snapshots up to there. Karras et al. 2024 (arXiv 2312.02696), section 3.1. Raises
    DataError if there are none. With `models.save` it becomes a model like any other.
    """
    found = [(path, checkpoint.about(path)) for path in sorted(folder.glob("power_*.safetensors"))]
    if not found:
        raise DataError(f"There are no snapshots in {folder}: set power_averages and train again.")
    at = images or max(int(meta["images"]) for _, meta in found)
    used = [(path, meta) for path, meta in found if meta["images"] <= at]
    shares = post_hoc_shares(
        [(int(meta["images"]), float(meta["average"].removeprefix("power_"))) for _, meta in used], at, width
    )
    return mix_averages([checkpoint.load(path)[0] for path, _ in used], shares)
