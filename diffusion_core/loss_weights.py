"""Loss weights of the literature, written as factors of the squared error of x0, whatever the network predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from diffusion_core import losses
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser, log_sigma
from diffusion_core.losses import Weight
from diffusion_core.nets.embedding import FourierFeatures
from diffusion_core.nets.layers import zero_init
from diffusion_core.schedules import Level, NoiseSchedule


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma). Hang et al. 2023 (arXiv 2303.09556)."""
    return lambda level: level.snr.clamp(max=gamma)


def soft_min_snr(sd: float = 1.0) -> Weight:
    """1 / (sigma^2 + sd^2), a smooth min-SNR. Crowson et al. 2024 (arXiv 2401.11605), as in k-diffusion."""
    return lambda level: 1 / (level.sigma**2 + sd**2)


def p2(k: float = 1.0, gamma: float = 1.0) -> Weight:
    """SNR / (k + SNR)^gamma. Choi et al. 2022 (arXiv 2204.00227), eq. 8."""
    return lambda level: level.snr / (k + level.snr) ** gamma


def debiased() -> Weight:
    """sqrt(SNR). Yu et al. 2023 (arXiv 2310.08442)."""
    return lambda level: level.snr.sqrt()


def elbo(schedule: NoiseSchedule) -> Weight:
    """-dSNR/dt / 2. With t uniform on the schedule the loss is the diffusion term of the bound on -log p, nats per dimension.

    Kingma et al. 2021 (arXiv 2107.00630), eq. 18; the prior and reconstruction terms are not included. Differentiable with
    respect to a learned schedule.
    """

    def weight(level: Level) -> Tensor:
        with torch.enable_grad():
            t = schedule.invert(level.logsnr).detach().requires_grad_()
            (dsnr,) = torch.autograd.grad(schedule(t).snr.sum(), t, create_graph=True)
        return -dsnr / 2 if dsnr.requires_grad and torch.is_grad_enabled() else -dsnr.detach() / 2

    return weight


class Uncertainty(nn.Module):
    """Learned uncertainty: L / exp(u(level)) + u(level), which gives all levels gradients of similar size.

    L is the denoising loss `inner`; u is linear in Fourier features of the level. Karras et al. 2024 (arXiv 2312.02696),
    eq. 22.
    """

    def __init__(self, width: int = 128, inner: Callable[..., Tensor] = losses.loss) -> None:
        super().__init__()
        self.inner = inner
        self.features = FourierFeatures(width)
        self.linear = zero_init(nn.Linear(width, 1))

    def log_variance(self, level: Level) -> Tensor:
        """u(level), `[B]`: the logarithm of the expected loss."""
        c = log_sigma(level).to(self.linear.weight)
        u: Tensor = self.linear(self.features(c))[:, 0]
        return u

    def forward(
        self, denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        u = self.log_variance(level)
        loss: Tensor = self.inner(denoiser, x0, level, noise, weight, cond)
        return loss / u.exp() + u
