"""Membership inference by the loss (Yeom et al. 2018): can training examples be told from held-out ones?

It is the earliest sign of memorization. Long before a sample is a copy, a denoiser removes small noise better from examples
that it was trained on. At each noise level the same noise is added to both sets, and AUC = P(training loss < held-out loss) is
0.5 if the losses do not tell them apart. It is computed during a training (tasks/train) and for the finished model
(tasks/evaluate/membership_inference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import mannwhitneyu, rankdata
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.recipe import Recipe
from diffusion_core.schedules import sigma_level
from diffusion_core.training.monitoring import denoising_losses

# Noise levels at which a model is judged, in the network's units (data have standard deviation 0.5).
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
ERROR = 0.05  # that one of the intervals of all noise levels misses, and level of the test
ALARM = 0.55  # the whole interval of the AUC above this is an alarm


@dataclass(frozen=True)
class LevelGap:
    """Mean relative losses of both sets at one noise level, and the AUC with its interval.

    `p`: p-value of the Mann-Whitney test, times the number of levels. It guards against the interval, which has no width if
    the sets do not overlap; among a handful of examples that happens by chance.
    """

    sigma: float
    train: float
    heldout: float
    auc: float
    low: float
    high: float
    p: float

    @property
    def alarming(self) -> bool:
        """Whether the losses tell training examples from held-out ones, by the interval and by the test."""
        return self.low > ALARM and self.p < ERROR


def auc(train: np.ndarray, heldout: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """P(train < held-out) for losses `[n]` and `[m]`, ties counted half, with the interval of DeLong et al. 1988.

    The variance of the AUC is the sum of the variances of two means: that of the share of held-out losses above each training
    loss, and that of the share of training losses below each held-out loss. Needs two examples of each.
    """
    n, m = len(train), len(heldout)
    ranks = rankdata(np.concatenate([train, heldout]))
    above = 1 - (ranks[:n] - rankdata(train)) / m
    below = (ranks[n:] - rankdata(heldout)) / n
    value = float(above.mean())
    half_width = float(ndtri(0.5 + level / 2) * np.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m))
    return value, max(0.0, value - half_width), min(1.0, value + half_width)


def gaps(sigmas: Sequence[float], train: np.ndarray, heldout: np.ndarray) -> list[LevelGap]:
    """The gap at each level from losses `[levels, n]` and `[levels, m]`, n and m at least 2.

    Every interval has the level 1 - ERROR / levels, so that all of them hold together at 95% (Bonferroni).
    """
    levels = len(sigmas)
    return [
        LevelGap(
            sigma,
            float(a.mean()),
            float(b.mean()),
            *auc(a, b, 1 - ERROR / levels),
            p=min(1.0, levels * float(mannwhitneyu(a, b, alternative="less").pvalue)),
        )
        for sigma, a, b in zip(sigmas, train, heldout, strict=True)
    ]


def noise_variances(sigmas: Sequence[float], recipe: Recipe | None) -> np.ndarray:
    """What `losses` divides by, `[levels]`."""
    return np.ones(len(sigmas)) if recipe is not None and recipe.error is not None else np.square(sigmas)


def losses(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    sigmas: Sequence[float],
    seed: int = 0,
    draws: int = 4,
    recipe: Recipe | None = None,
    batch: int = 256,
) -> np.ndarray:
    """Mean of |D(x0 + sigma eps) - x0|^2 / sigma^2 for every example `[n, *S]` at every level: float64 `[levels, n]`.

    Example i of every set gets the same `draws` draws of noise, so that two sets differ in their examples only. A recipe with
    another corruption than normal noise corrupts in its own way, at the time that its level sigma encodes. What a recipe
    measures by its `error`, such as the cross-entropy of tokens, is not divided.
    """
    levels = sigma_level(torch.tensor(sigmas, dtype=torch.float64))
    variances = noise_variances(sigmas, recipe)[:, None]
    mean = np.zeros((len(sigmas), len(x0)))
    for draw in range(draws):
        errors = denoising_losses(denoiser, x0, cond, levels, (seed, draw), batch, recipe)
        mean += errors.numpy() / variances / draws
    return mean


def sentence(rows: Sequence[LevelGap]) -> str:
    """The result in one sentence."""
    if not rows:
        return "Too few examples to compare the losses of training and held-out examples."
    worst = max(rows, key=lambda row: (row.alarming, row.low))
    figures = f"AUC {worst.auc:.2f}, 95% interval {worst.low:.2f} to {worst.high:.2f}, at noise level {worst.sigma:g}"
    if worst.alarming:
        return f"The model knows its training examples from held-out ones by their loss ({figures})."
    return f"The model does not know its training examples from held-out ones by their loss (at most {figures})."
