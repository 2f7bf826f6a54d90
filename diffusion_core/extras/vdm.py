"""Variational diffusion: the bound on the log-likelihood, and a noise schedule that learns to estimate it with little variance.

Kingma et al. 2021 (arXiv 2107.00630).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.loss_weights import elbo
from diffusion_core.losses import Weight
from diffusion_core.schedules import Level, NoiseSchedule, logsnr_level


class LearnedSchedule(nn.Module):
    """A density whose log-SNR falls from `highest` to `lowest` along a learned monotone function of u.

    A sum of a line and of sigmoids with positive weights. `schedule` is the noise schedule.
    """

    def __init__(self, highest: float = 13.3, lowest: float = -5.0, width: int = 32) -> None:
        super().__init__()
        self.highest, self.lowest = highest, lowest
        self.slopes = nn.Parameter(torch.full((width,), math.log(math.expm1(8.0))))
        self.offsets = nn.Parameter(torch.linspace(0, 1, width))
        self.shares = nn.Parameter(torch.full((width + 1,), -3.0))
        with torch.no_grad():
            self.shares[0] = 1.0
        self.schedule = NoiseSchedule(lambda t: logsnr_level(self.logsnr(t)), self.invert)

    def forward(self, u: Tensor) -> Level:
        level = self.schedule(u)
        return Level(level.a.detach(), level.s.detach())  # the schedule learns by `VariationalLoss` alone

    def logsnr(self, t: Tensor) -> Tensor:
        """The log-SNR at t `[B]` in [0, 1]; falls strictly."""
        low, high = self._rise(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        return self.highest + (self.lowest - self.highest) * (self._rise(t) - low) / (high - low)

    def _rise(self, t: Tensor) -> Tensor:
        share = softplus(self.shares).to(t)
        waves = torch.sigmoid(softplus(self.slopes).to(t) * (t[:, None] - self.offsets.to(t)))
        return share[0] * t + waves @ share[1:] / len(self.offsets)

    @torch.no_grad()
    def invert(self, logsnr: Tensor) -> Tensor:
        """The t with this log-SNR, `[B]`, by bisection."""
        low, high = torch.zeros_like(logsnr), torch.ones_like(logsnr)
        for _ in range(50):
            middle = (low + high) / 2
            noisier = self.logsnr(middle) < logsnr
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return (low + high) / 2


class VariationalLoss(nn.Module):
    """The diffusion term of the bound, nats a dimension, for a `LearnedSchedule`; the recipe's weight is not used.

    The net minimises the mean of the loss, which the schedule's inside does not change; the schedule minimises its square,
    which makes the estimate steady (appendix I.2). Both happen in one backward pass: gradients into the schedule are
    multiplied by twice the loss.
    """

    def __init__(self, schedule: LearnedSchedule) -> None:
        super().__init__()
        self._schedule = (schedule,)  # a tuple: it is the recipe's density and is saved as such

    def forward(
        self, denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        schedule = self._schedule[0]
        t = schedule.invert(level.logsnr)
        here = schedule.logsnr(t)
        moving = t.clone().requires_grad_()
        (fall,) = torch.autograd.grad(schedule.logsnr(moving).sum(), moving, create_graph=True)
        learned_level = logsnr_level(here)
        error = (denoiser(learned_level.corrupt(x0, noise), learned_level, cond) - x0).square().flatten(1).mean(1)
        value = -fall.to(x0) / 2 * here.exp().to(x0) * error
        for part in (here, fall):
            part.register_hook(lambda gradient: gradient * 2 * value.detach().to(gradient))
        return value


@torch.no_grad()
def bits_per_dim(
    denoiser: Denoiser, x0: Tensor, schedule: NoiseSchedule, seed: int = 0, cond: Cond | None = None, draws: int = 8
) -> Tensor:
    """The variational upper bound on -log2 p(x0) / d, `[B]`, for continuous data x0 `[B, *S]` and t in (0, 1) on the path.

    Prior, diffusion and reconstruction terms (eq. 11 and 17); the last decodes the least noisy x / a with variance sigma^2.
    The diffusion term is a mean over `draws` stratified levels an example.
    """
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    (a1, s1), sigma0 = (v[1] for v in ends), ends.sigma[0]
    flat = x0.flatten(1).double()
    prior = 0.5 * (s1**2 + (a1 * flat) ** 2 - 1 - torch.log(s1**2)).mean(1)
    reconstruction = 0.5 * (torch.log(2 * torch.pi * sigma0**2) + 1)
    ids = torch.arange(len(x0), device=x0.device)
    total = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    offset = rng.uniform((), (seed, 0), ids)
    for draw in range(draws):
        level = schedule(((offset + draw) / draws).clamp(1e-9, 1 - 1e-9))
        noise = rng.normal(x0.shape[1:], (seed, 1, draw), ids).to(x0)
        error = (denoiser(level.corrupt(x0, noise), level, cond or {}) - x0).double().square().flatten(1).mean(1)
        total += elbo(schedule)(level) * error / draws
    return (prior + reconstruction + total) / math.log(2)
