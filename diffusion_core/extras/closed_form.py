"""Denoisers in closed form: the oracles that everything else is tested against.

Each takes x `[B, d]` and returns E[x0 | x] for data of a known distribution. The empirical one knows nothing but the training
set: it is the minimiser of the training loss and the definition of perfect memorization.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level


def gaussian(mean: Tensor, cov: Tensor) -> Denoiser:
    """E[x0 | x] for normal data of mean `[d]` and covariance `[d, d]`."""
    values, basis = torch.linalg.eigh(cov)
    values = values.clamp(min=0)

    def denoise(x: Tensor, level: Level, _: Cond | None = None) -> Tensor:
        a, s = level.like(x)
        gain = a * values.to(x) / (a**2 * values.to(x) + s**2)
        return mean.to(x) + ((x - a * mean.to(x)) @ basis.to(x) * gain) @ basis.to(x).T

    return denoise


def gaussian_loss(cov: Tensor, level: Level) -> Tensor:
    """The least possible mean squared error of x0 (per dimension) on normal data, at the level(s): `[]` or `[B]`."""
    values = torch.linalg.eigvalsh(cov).clamp(min=0)
    a, s = level.a[..., None], level.s[..., None]
    return (values * s**2 / (a**2 * values + s**2)).mean(-1)


def mixture(weights: Tensor, means: Tensor, sd: Tensor | float) -> Denoiser:
    """E[x0 | x] for a mixture of isotropic normals: weights `[K]`, means `[K, d]`, standard deviations `[K]` or one."""
    sd = torch.as_tensor(sd).expand(len(weights))

    def denoise(x: Tensor, level: Level, _: Cond | None = None) -> Tensor:
        a, s = level.like(x)
        centre, var0 = means.to(x), sd.to(x) ** 2
        var = a**2 * var0 + s**2  # [K] or [B, K]
        share = mixture_shares(x, level, weights, means, sd)
        slope = share * a * var0 / var
        return slope.sum(1, keepdim=True) * x + (share - slope * a) @ centre

    return denoise


def mixture_shares(x: Tensor, level: Level, weights: Tensor, means: Tensor, sd: Tensor) -> Tensor:
    """The posterior probability of each component at x, `[B, K]`."""
    return torch.softmax(_mixture_logs(x, level, weights, means, sd), 1)


def mixture_logp(x: Tensor, level: Level, weights: Tensor, means: Tensor, sd: Tensor) -> Tensor:
    """The log density of x at the level, `[B]`."""
    return torch.logsumexp(_mixture_logs(x, level, weights, means, sd), 1)


def _mixture_logs(x: Tensor, level: Level, weights: Tensor, means: Tensor, sd: Tensor) -> Tensor:
    a, s = level.like(x)
    centre, d = means.to(x), x.shape[1]
    var = a**2 * sd.to(x) ** 2 + s**2
    square = x.square().sum(1, keepdim=True) - 2 * a * x @ centre.T + a**2 * centre.square().sum(1)
    return weights.to(x).log() - square.clamp(min=0) / (2 * var) - d / 2 * torch.log(2 * torch.pi * var)


def empirical(points: Tensor) -> Denoiser:
    """E[x0 | x] if the data are exactly the points `[n, *S]`: the denoiser that a model trained for ever would become."""
    flat = points.flatten(1)
    inner = mixture(torch.full((len(flat),), 1 / len(flat)), flat, 0.0)
    return lambda x, level, cond=None: inner(x.flatten(1), level, {}).reshape(x.shape)  # type: ignore[misc]
