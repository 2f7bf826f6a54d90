"""Noise levels and noise schedules.

A noisy example is `x = a * x0 + s * eps` with clean data x0 and standard normal eps; the pair (a, s) is its noise level. The
rest of this package works with levels instead of a time t, because papers define t differently, and instead of
sigma = s / a, because sigma is infinite at the start of a flow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus


class Level(NamedTuple):
    """The coefficients of `x = a * x0 + s * eps`, both `[]` (one level) or `[B]` (one per row).

    Multiplying both by a constant rescales x without changing its information content, which depends on s / a alone.
    """

    a: Tensor
    s: Tensor

    @property
    def sigma(self) -> Tensor:
        """Noise-to-signal ratio of amplitudes, s / a."""
        return self.s / self.a

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of variances, (a / s)^2."""
        return (self.a / self.s) ** 2

    @property
    def logsnr(self) -> Tensor:
        """log (a / s)^2."""
        return 2 * (self.a.log() - self.s.log())

    @property
    def angle(self) -> Tensor:
        """atan2(s, a): 0 without noise, pi / 2 for pure noise; finite everywhere."""
        return torch.atan2(self.s, self.a)

    def like(self, x: Tensor) -> Level:
        """The level in the dtype and on the device of x `[B, *S]`, reshaped to `[B, 1, ..., 1]` to broadcast against x."""
        return Level(expand_like(self.a, x), expand_like(self.s, x))

    def rows(self, rows: slice | Tensor) -> Level:
        """The given rows of a `[B]` level, by a slice or by indices on any device; a `[]` level is returned as it is."""
        if self.a.ndim == 0:
            return self
        rows = rows.to(self.a.device) if isinstance(rows, Tensor) else rows
        return Level(self.a[rows], self.s[rows])

    def corrupt(self, x0: Tensor, noise: Tensor) -> Tensor:
        """a * x0 + s * noise, `[B, *S]`."""
        a, s = self.like(x0)
        return a * x0 + s * noise

    def noisier(self, other: Level) -> bool:
        """Whether this `[]` level has a larger s / a than the other; also correct at a = 0."""
        return bool(self.s * other.a > other.s * self.a)


def expand_like(v: Tensor, x: Tensor) -> Tensor:
    """v `[]` or `[B]` in the dtype and on the device of x `[B, *S]`, reshaped to `[B, 1, ..., 1]` to broadcast against x."""
    v = v.to(x)
    return v if v.ndim == 0 else v.reshape(-1, *[1] * (x.ndim - 1))


def sigma_level(sigma: Tensor) -> Level:
    """The level (1, sigma), as in EDM and variance-exploding diffusion."""
    return Level(torch.ones_like(sigma), sigma)


def logsnr_level(logsnr: Tensor) -> Level:
    """The variance-preserving level (a^2 + s^2 = 1) with this log-SNR; accurate at both ends."""
    return Level(torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())


@dataclass(frozen=True)
class NoiseSchedule:
    """A noise schedule: `schedule(t)` is the level at time t, `schedule.invert(logsnr)` is the t with this log-SNR.

    Noise grows with t. t runs over [0, 1] unless the schedule's docstring says otherwise.
    """

    at: Callable[[Tensor], Level]
    invert: Callable[[Tensor], Tensor]

    def __call__(self, t: Tensor) -> Level:
        return self.at(t)


def ve() -> NoiseSchedule:
    """Variance exploding: (1, sigma) with t = sigma in (0, inf). Song et al. 2021 (arXiv 2011.13456); Karras et al. 2022."""
    return NoiseSchedule(sigma_level, lambda g: torch.exp(-g / 2))


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """Variance preserving with linear beta(t): a^2 = exp(-B), B = t^2 (beta_max - beta_min) / 2 + t beta_min.

    Song et al. 2021 (arXiv 2011.13456), eq. 33.
    """

    def at(t: Tensor) -> Level:
        integral = _vp_integral(t, beta_min, beta_max)
        return Level(torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral)))

    return NoiseSchedule(at, lambda g: _vp_time(softplus(-g), beta_min, beta_max))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> NoiseSchedule:
    """Sub-VP: a as in `vp`, s = 1 - a^2. Song et al. 2021 (arXiv 2011.13456), eq. 29."""

    def at(t: Tensor) -> Level:
        integral = _vp_integral(t, beta_min, beta_max)
        return Level(torch.exp(-integral / 2), -torch.expm1(-integral))

    def invert(g: Tensor) -> Tensor:
        # s = 1 - a^2 and sigma = s / a give a^2 + sigma a - 1 = 0, whose positive root is 2 / (sigma + sqrt(sigma^2 + 4)).
        sigma = torch.exp(-g / 2)
        a = 2 / (sigma + torch.sqrt(sigma**2 + 4))
        return _vp_time(-2 * a.log(), beta_min, beta_max)

    return NoiseSchedule(at, invert)


def _vp_integral(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return t**2 * (beta_max - beta_min) / 2 + t * beta_min


def _vp_time(integral: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return 2 * integral / (beta_min + torch.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral))


def betas(steps: Sequence[float] | Tensor) -> NoiseSchedule:
    """The discrete variance-preserving schedule a_t^2 = prod (1 - beta_i), t = 0 ... N - 1; log-SNR is linear in between.

    Ho et al. 2020 (arXiv 2006.11239), eq. 4.
    """
    beta = torch.as_tensor(steps, dtype=torch.float64)
    log_alpha_bar = torch.cumsum(torch.log1p(-beta), 0)
    logsnr = log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar))  # falls with t

    def at(t: Tensor) -> Level:
        low = t.floor().long().clamp(0, len(logsnr) - 2)
        table = logsnr.to(t.device)
        return logsnr_level(torch.lerp(table[low], table[low + 1], t.double() - low))

    def invert(g: Tensor) -> Tensor:
        table = logsnr.to(g.device)
        low = torch.searchsorted(-table, -g.double().contiguous()).sub(1).clamp(0, len(table) - 2)
        return low + (g.double() - table[low]) / (table[low + 1] - table[low])

    return NoiseSchedule(at, invert)


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's linear betas, `[n]` float64. Ho et al. 2020 (arXiv 2006.11239), section 4.

    `first` and `last` are those of 1000 levels. Fewer levels have larger betas, so that the last level is as noisy.
    """
    return (torch.linspace(first, last, n, dtype=torch.float64) * (1000 / n)).clamp(max=0.999)


def cosine_betas(n: int = 4000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """The betas of the cosine schedule, `[n]` float64. Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17."""
    t = torch.arange(n + 1, dtype=torch.float64) / n
    alpha_bar = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=largest)


def trig(sd: float = 1.0) -> NoiseSchedule:
    """(cos, sd sin) of pi t / 2: the cosine schedule of v-diffusion (arXiv 2202.00512).

    With the standard deviation of the data as `sd` it is the schedule of TrigFlow (arXiv 2410.11081), eq. 1.
    """
    return NoiseSchedule(
        lambda t: Level(torch.cos(t * math.pi / 2), sd * torch.sin(t * math.pi / 2)),
        lambda g: torch.atan(torch.exp(-g / 2) / sd) * (2 / math.pi),
    )


def linear() -> NoiseSchedule:
    """(1 - t, t): rectified flow (arXiv 2209.03003) and the conditional optimal-transport path (arXiv 2210.02747)."""
    return NoiseSchedule(lambda t: Level(1 - t, t), lambda g: torch.sigmoid(-g / 2))


def logsnr(highest: float = 13.3, lowest: float = -5.0) -> NoiseSchedule:
    """Variance preserving with log-SNR linear in t. Kingma et al. 2021 (arXiv 2107.00630), the fixed schedule."""
    return NoiseSchedule(
        lambda t: logsnr_level(highest + (lowest - highest) * t),
        lambda g: (g - highest) / (lowest - highest),
    )


def shift(schedule: NoiseSchedule, ratio: float) -> NoiseSchedule:
    """The schedule with its log-SNR raised by 2 log(ratio) at every t; ratio < 1 gives more noise.

    Hoogeboom et al. 2023 (arXiv 2301.11093), with ratio = 64 / side. Applied to `linear` it is the time shift of Esser et al.
    2024 (arXiv 2403.03206), eq. 23.
    """
    return NoiseSchedule(
        lambda t: schedule(schedule.invert(schedule(t).logsnr + 2 * math.log(ratio))),
        lambda g: schedule.invert(g - 2 * math.log(ratio)),
    )
