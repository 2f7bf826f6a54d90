"""A network as a denoiser: scale the input, embed the noise level, convert the prediction to an estimate of x0."""

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
    """Mean and variance of x0 given x, `[B, *S]` each, as returned by an `UncertainDenoiser`.

    If a share is given, var is an upper bound: the noise variance of a step is then interpolated in logarithms, see
    `transition`.
    """

    mean: Tensor
    var: Tensor
    share: Tensor | None = None


UncertainDenoiser = Callable[[Tensor, Level, Cond], Posterior]


def log_sigma(level: Level) -> Tensor:
    """log(sigma) / 4, EDM's noise embedding; clamped to +-3, because sigma is 0 or infinite at the ends of some schedules."""
    return (level.logsnr / -8).clamp(-3, 3)


def angle(sd: float = 1.0) -> Callable[[Level], Tensor]:
    """TrigFlow's noise embedding for data of standard deviation sd: atan2(s, a sd)."""
    return lambda level: torch.atan2(level.s, level.a * sd)


class Preconditioned(nn.Module):
    """Wraps `net: (x [B, *S], c_noise [B], cond) -> [B, *S]` as a denoiser.

    The net's input is c_in x with c_in = 1 / sqrt((a sd)^2 + s^2), which has unit variance for data of standard deviation sd.
    The net predicts `target`. It runs in the dtype of its parameters; all other arithmetic runs in the dtype of x.
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
        """The net's prediction of the target at x `[B, *S]`, in the dtype of x."""
        dtype = next(self.net.parameters()).dtype
        c_in = 1 / torch.hypot(level.a * self.sd, level.s)
        c_noise = self.c_noise(level).to(device=x.device, dtype=dtype).expand(len(x))
        typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in (cond or {}).items()}
        prediction: Tensor = self.net((expand_like(c_in, x) * x).to(dtype), c_noise, typed)
        return prediction.to(x.dtype)

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        """x0_hat, with the shape and dtype of x."""
        return to_x0(self.predict(x, level, cond), x, level, self.target)
