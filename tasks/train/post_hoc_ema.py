"""Post-hoc EMA: averages of the weights that were not tracked, from stored snapshots of those that were."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from diffusion_core.training.ema import mix_averages, post_hoc_shares
from tasks.common import checkpoint
from tasks.common.errors import DataError


def weights(folder: Path, width: float, images: int | None = None) -> dict[str, Tensor]:
    """The power average of relative width `width` at `images` (None: at the last snapshot) from `artifacts/<model>/snapshots`.

    It is the least-squares mixture of all snapshots up to there (Karras et al. 2024, arXiv 2312.02696, section 3.1). Raises
    DataError if there are none. `modality.save` makes it a model like any other.
    """
    snapshots = [(path, checkpoint.about(path)) for path in sorted(folder.glob("power_*.safetensors"))]
    if not snapshots:
        raise DataError(f"There are no snapshots in {folder}: set power_averages and train again.")
    at = images or max(int(meta["images"]) for _, meta in snapshots)
    used = [(path, meta) for path, meta in snapshots if meta["images"] <= at]
    shares = post_hoc_shares(
        [(int(meta["images"]), float(meta["average"].removeprefix("power_"))) for _, meta in used], at, width
    )
    return mix_averages([checkpoint.load(path)[0] for path, _ in used], shares)
