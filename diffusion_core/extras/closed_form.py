"""Closed-form denoisers for known data distributions, used to test everything else.

Each takes x `[B, d]` and returns E[x0 | x]. `empirical` is the denoiser of a finite set of points: it minimises the training
loss exactly, so its samples are copies of the training set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level


def gaussian(mean: Tensor, cov: Tensor) -> Denoiser:
    """E[x0 | x] for normal data with this mean `[d]` and covariance `[d, d]`."""
    values, basis = torch.linalg.eigh(cov)
    values = values.clamp(min=0)

    def denoise(x: Tensor, level: Level, _: Cond | None = None) -> Tensor:
        a, s = level.like(x)
        gain = a * values.to(x) / (a**2 * values.to(x) + s**2)
        x0: Tensor = mean.to(x) + ((x - a * mean.to(x)) @ basis.to(x) * gain) @ basis.to(x).T
        return x0

    return denoise


def gaussian_loss(cov: Tensor, level: Level) -> Tensor:
    """The smallest possible mean squared error of x0 per dimension for normal data, `[]` or `[B]` like the level."""
    values = torch.linalg.eigvalsh(cov).clamp(min=0)
    a, s = level.a[..., None], level.s[..., None]
    variances: Tensor = values * s**2 / (a**2 * values + s**2)  # of x0 given x along each eigenvector
    return variances.mean(-1)


def mixture(weights: Tensor, means: Tensor, sd: Tensor | float) -> Denoiser:
    """E[x0 | x] for a mixture of isotropic normals: weights `[K]`, means `[K, d]`, standard deviations `[K]` or a number."""
    sd = torch.as_tensor(sd).expand(len(weights))

    def denoise(x: Tensor, level: Level, _: Cond | None = None) -> Tensor:
        a, s = level.like(x)
        centre, var0 = means.to(x), sd.to(x) ** 2
        var = a**2 * var0 + s**2  # [K] or [B, K]
        posterior = mixture_shares(x, level, weights, means, sd)
        gain = posterior * a * var0 / var
        return gain.sum(1, keepdim=True) * x + (posterior - gain * a) @ centre

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
    """E[x0 | x] if the data are exactly the points `[n, *S]`: the minimiser of the training loss on them."""
    flat = points.flatten(1)
    inner = mixture(torch.full((len(flat),), 1 / len(flat)), flat, 0.0)
    return lambda x, level, cond=None: inner(x.flatten(1), level, {}).reshape(x.shape)  # type: ignore[misc]
