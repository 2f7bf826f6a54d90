"""What the data say about the training: sigma_data, where on the noise axis to train, and how soon to expect memorization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Passes over the data after which a tenth of the samples were copies (`benchmarks.digits`: 2194 to 2560 for n = 50 to 400, no
# augmentation). That onset in passes hardly depends on n is Bonnaire et al. 2025 (arXiv 2505.17638); its value depends on net
# and data.
PASSES_TO_MEMORIZATION = 2200


class DataScale(NamedTuple):
    """sigma_data, and mean and standard deviation of log sigma for `objective.lognormal`."""

    sd: float
    mean: float
    std: float


def data_scale(x0: Tensor) -> DataScale:
    """Estimate from examples `[N, *S]`, N >= 2. Raises ValueError for constant data.

    sd is the root mean square, as the net sees the data with their mean. In log sigma the flow is dx / dlog sigma = x - x0_hat,
    so that an error of the estimate moves the sample alike wherever on that axis it is made. What there is to estimate in a
    principal direction of standard deviation r is settled around sigma = r, as its gain r^2 / (r^2 + sigma^2) falls from 1 to
    0, and is of size r. Where to train is therefore the sum over directions of r times that fall: a mixture of logistic
    densities of log sigma with means log r, variance pi^2 / 12 and shares r. Mean and std are the mixture's.

    For unit normal data they are 0 and 0.91. For pictures with the spectrum of natural ones (r as 1 / frequency, 32 x 32,
    sd 0.5) they are -0.8 and 1.2, between what EDM (-1.2 and 1.2) and EDM2 (-0.4 and 1.0) found by trial.
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


def training_outlook(n: int, images: int, scale: DataScale | None = None) -> str:
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
