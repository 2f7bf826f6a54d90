"""The error of a denoiser as a function of the noise level, measured once and interpolated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level, sigma_level


@dataclass(frozen=True)
class ErrorCurve:
    """Mean squared error of x0 per dimension at increasing sigmas.

    In between, its logarithm is linear in log sigma. Below the smallest sigma the error is proportional to sigma^2, above the
    largest it is constant: an estimate of x0 can do that without looking at the details, or at x at all.
    """

    sigmas: Sequence[float]
    errors: Sequence[float]

    def __call__(self, level: Level) -> Tensor:
        """The error at a level, `[]` or `[B]` float64 on the level's device."""
        logs, values = (torch.tensor(row, dtype=torch.float64).log() for row in (self.sigmas, self.errors))
        x = level.sigma.double().clamp(min=1e-30).log()
        logs, values = logs.to(x.device), values.to(x.device)
        at = torch.searchsorted(logs, x.contiguous()).clamp(1, len(logs) - 1)
        share = ((x - logs[at - 1]) / (logs[at] - logs[at - 1])).clamp(0, 1)
        inside = torch.lerp(values[at - 1], values[at], share)
        return (inside + 2 * (x - logs[0]).clamp(max=0)).exp()


@torch.no_grad()
def measure(
    denoiser: Denoiser, x0: Tensor, sigmas: Sequence[float], seed: int = 0, cond: Cond | None = None
) -> ErrorCurve:
    """The curve of a denoiser on examples x0 `[N, *S]`, with the same noise at each of the increasing sigmas."""
    ids = torch.arange(len(x0), device=x0.device)
    noise = rng.normal(x0.shape[1:], rng.fold(seed, rng.Stream.VARIANCE), ids).to(x0)
    errors = []
    for sigma in sigmas:
        level = sigma_level(torch.tensor(sigma, dtype=torch.float64))
        error = float((denoiser(level.corrupt(x0, noise), level, cond or {}) - x0).double().square().mean())
        errors.append(max(error, 1e-30))
    return ErrorCurve(list(sigmas), errors)


def spaced(smallest: float, largest: float, count: int) -> list[float]:
    """`count` sigmas evenly spaced in log sigma."""
    ratio = math.log(largest / smallest) / (count - 1)
    return [smallest * math.exp(i * ratio) for i in range(count)]
