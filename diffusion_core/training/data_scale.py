"""Training settings estimated from the data: sigma_data, the noise levels to train at, and when to expect memorization."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Passes over the data after which a tenth of the samples were copies (`benchmarks.digits`: 2194 to 2560 for n = 50 to 400, no
# augmentation). The number hardly depends on n (Bonnaire et al. 2025, arXiv 2505.17638), but it depends on network and data.
PASSES_TO_MEMORIZATION = 2200


class DataScale(NamedTuple):
    """sigma_data, and mean and standard deviation of log sigma for `objective.lognormal`."""

    sd: float
    mean: float
    std: float


def data_scale(x0: Tensor) -> DataScale:
    """Estimate from examples `[N, *S]`, N >= 2. Raises ValueError for constant data.

    sd is the root mean square, because the network sees the data with their mean. mean and std follow from where on the axis
    of log sigma an error of x0_hat matters. The flow is dx / dlog sigma = x - x0_hat, so an error moves the sample by the same
    amount at every log sigma. A principal direction of standard deviation r has gain r^2 / (r^2 + sigma^2): it is decided
    around sigma = r, where the gain falls from 1 to 0, and its size is r. The density to train with is therefore the sum over
    directions of r times that fall: a mixture of logistic densities of log sigma with means log r, variance pi^2 / 12 and
    weights r. mean and std are those of the mixture.

    For unit normal data they are 0 and 0.91. For pictures with the spectrum of natural ones (r proportional to 1 / frequency,
    32 x 32, sd 0.5) they are -0.8 and 1.2, between EDM's (-1.2 and 1.2) and EDM2's (-0.4 and 1.0), which were found by trial.
    """
    flat = x0.flatten(1).double()
    sds = torch.linalg.svdvals(flat - flat.mean(0)) / math.sqrt(max(len(flat) - 1, 1))
    sds = sds[sds > 1e-6 * sds.max()] if sds.numel() else sds
    if not sds.numel():
        raise ValueError("the data are constant, so there is no noise level to learn at")
    weights = sds / sds.sum()
    mean = (weights * sds.log()).sum()
    variance = (weights * (sds.log() - mean) ** 2).sum() + math.pi**2 / 12
    return DataScale(float(flat.square().mean().sqrt()), float(mean), float(variance.sqrt()))


class AnnealedLevels(NamedTuple):
    """Noise levels of annealed Langevin dynamics, evenly spaced in log sigma: the largest sigma, and how many there are."""

    largest: float
    levels: int


def annealed_levels(x0: Tensor, smallest: float = 0.01, most: int = 2000) -> AnnealedLevels:
    """NCSN v2's choice of levels from examples `[N, *S]`, of which at most `most` are used.

    Song & Ermon 2020 (arXiv 2006.09011).
    The largest sigma is the largest distance between two examples (technique 1), so that dynamics can go from one to the other.
    The ratio g of neighbouring levels is such that half of the noise of one level has a length that is likely at the next
    (technique 2): ndtr(sqrt(2 D) (g - 1) + 3 g) - ndtr(sqrt(2 D) (g - 1) - 3 g) = 0.5 with D coordinates. Raises ValueError if
    the examples do not differ by more than `smallest`.
    """
    flat = x0.flatten(1).double()[:: max(1, -(-len(x0) // most))]
    largest = float(torch.cdist(flat, flat).max())
    if largest <= smallest:
        raise ValueError(f"the examples differ by {largest:.3g}, less than the smallest noise level")
    ratio = level_ratio(flat.shape[1])
    return AnnealedLevels(largest, max(2, 1 + math.ceil(math.log(largest / smallest) / math.log(ratio))))


def level_ratio(coordinates: int) -> float:
    """The ratio of neighbouring noise levels of technique 2 of NCSN v2 (arXiv 2006.09011), by bisection; at most 2.

    Below 18 coordinates the lengths of noise vary so much that larger ratios would do.
    """

    def overlap(ratio: float) -> float:
        middle, reach = math.sqrt(2 * coordinates) * (ratio - 1), 3 * ratio
        return 0.5 * (math.erf((middle + reach) / math.sqrt(2)) - math.erf((middle - reach) / math.sqrt(2)))

    low, high = 1.0, 2.0
    if overlap(high) > 0.5:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if overlap(middle) > 0.5 else (low, middle)
    return (low + high) / 2


def langevin_rate(ratio: float, steps: int) -> float:
    """The `rate` of `sampling.langevin.langevin` whose `steps` steps come nearest to the noise of a level (technique 4).

    x arrives with `ratio` times the noise of the level. On a point its variance over that of the level becomes
    (1 - r)^(2 steps) (ratio^2 - v) + v with v = 2 / (2 - r) and r = rate / 2; it should be 1.
    """
    rates = [math.exp(math.log(1e-6) + i * math.log(1e6) / 4000) for i in range(4000)]

    def excess(r: float) -> float:
        stationary = 2 / (2 - r)
        return abs((1 - r) ** (2 * steps) * (ratio**2 - stationary) + stationary - 1)

    return 2 * min(rates, key=excess)


def training_outlook(n: int, images: int, scale: DataScale | None = None) -> str:
    """A message for the start of a training: examples, passes, and when to expect memorization."""
    onset = n * PASSES_TO_MEMORIZATION
    verdict = "this run ends before that" if images < onset else "this run is longer: watch the gap to validation"
    measured = (
        "" if scale is None else f" Data: sigma_data {scale.sd:.3g}, log sigma {scale.mean:.2f} +- {scale.std:.2f}."
    )
    return (
        f"{n:,} examples, each seen {images / n:,.1f} times in {images:,} images. Without augmentation or dropout, "
        f"expect memorization from about {onset:,} images ({PASSES_TO_MEMORIZATION:,} passes); {verdict}.{measured}"
    )
