"""What the data say about the training: sigma_data, where on the noise axis to train, and how soon to expect memorization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Passes over the data after which about a tenth of the samples were copies (8x8 digits, n = 50 and 200, no augmentation:
# `benchmarks.digits`). Onset in passes does not depend on n there; it does depend on net and data.
PASSES_TO_MEMORIZATION = 2000


class DataScale(NamedTuple):
    """sigma_data, and mean and standard deviation of log sigma for `objective.lognormal`."""

    sd: float
    mean: float
    std: float


def data_scale(x0: Tensor) -> DataScale:
    """Estimate from examples `[N, *S]`, N >= 2.

    sd is the root mean square, as the net sees the data with their mean. A principal direction of standard deviation r is
    resolved where sigma passes r, over a logistic range of log sigma of variance pi^2 / 12 (the fall of the Gaussian denoiser's
    gain r^2 / (r^2 + sigma^2)). mean and std are those of that mixture, each direction weighing its r. Raises ValueError for
    constant data.
    """
    flat = x0.flatten(1).double()
    values = torch.linalg.svdvals(flat - flat.mean(0)) / math.sqrt(max(len(flat) - 1, 1))
    values = values[values > 1e-6 * values.max()] if values.numel() else values
    if not values.numel():
        raise ValueError("the data are constant, so there is no noise level to learn at")
    share = values / values.sum()
    mean = (share * values.log()).sum()
    spread = (share * (values.log() - mean) ** 2).sum() + math.pi**2 / 12
    return DataScale(float(flat.square().mean().sqrt()), float(mean), float(spread.sqrt()))


def opening(n: int, images: int, scale: DataScale | None = None) -> str:
    """What to say when training starts: examples, passes, and when memorization is to be expected."""
    onset = n * PASSES_TO_MEMORIZATION
    verdict = "this run ends before" if images < onset else "this run goes beyond: watch the gap to validation"
    measured = (
        "" if scale is None else (f" Data: sigma_data {scale.sd:.3g}, log sigma {scale.mean:.2f} +- {scale.std:.2f}.")
    )
    return (
        f"{n:,} examples, each seen {images / n:,.1f} times in {images:,} images. Without augmentation or dropout "
        f"memorization is to be expected from about {onset:,} images ({PASSES_TO_MEMORIZATION:,} passes); {verdict}.{measured}"
    )
