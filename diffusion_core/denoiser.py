"""A network as a denoiser: scale its input, embed the level, and turn what it predicts into the clean example."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.schedules import Level, expand_like
from diffusion_core.targets import Target, to_x0

Denoiser = Callable[[Tensor, Level, Cond], Tensor]  # x [B, *S], level, conditions -> x0_hat [B, *S]


class Posterior(NamedTuple):
    """What a denoiser that knows its uncertainty returns: mean and variance of x0 given x, `[B, *S]` each."""

    mean: Tensor
    var: Tensor


UncertainDenoiser = Callable[[Tensor, Level, Cond], Posterior]


def log_sigma(level: Level) -> Tensor:
    """log(sigma) / 4, EDM's noise embedding; held within +-3 where a path starts without signal or ends without noise."""
    return (level.logsnr / -8).clamp(-3, 3)


def angle(level: Level) -> Tensor:
    """atan2(s, a), TrigFlow's noise embedding."""
    return level.angle


class Preconditioned(nn.Module):
    """`net: (x [B, *S], c_noise [B], cond) -> [B, *S]` as a denoiser.

    The net sees x scaled to unit variance, c_in = 1 / sqrt((a sd)^2 + s^2) for data of standard deviation sd, and predicts
    `target`. It runs in its parameters' type; everything around it runs in the type of x.
    """

    def __init__(
        self,
        net: nn.Module,
        target: Target,
        sd: float = 1.0,
        c_noise: Callable[[Level], Tensor] = log_sigma,
    ) -> None:
        super().__init__()
        self.net = net
        self.target = target
        self.sd = sd
        self.c_noise = c_noise

    def predict(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        """What the net predicts at x `[B, *S]`, in the type of x."""
        dtype = next(self.net.parameters()).dtype
        c_in = 1 / torch.hypot(level.a * self.sd, level.s)
        c_noise = self.c_noise(level).to(device=x.device, dtype=dtype).expand(len(x))
        typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in (cond or {}).items()}
        return self.net((expand_like(c_in, x) * x).to(dtype), c_noise, typed).to(x.dtype)

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        """x0_hat, same shape and type as x."""
        return to_x0(self.predict(x, level, cond), x, level, self.target)
