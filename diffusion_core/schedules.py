"""Noise levels and the paths they lie on.

A noisy example is `x = a * x0 + s * eps` with clean data x0 and standard normal eps; the pair (a, s) is its level.
Nothing else in this package knows what "t" is: papers disagree about it, and sigma = s / a is infinite where a flow starts.
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
    """The point [a : s] of `x = a * x0 + s * eps`; both `[]` (one level) or `[B]` (one a row).

    Scaling both numbers scales x and changes no information: only their ratio says how noisy x is.
    """

    a: Tensor
    s: Tensor

    @property
    def sigma(self) -> Tensor:
        """Noise relative to signal, s / a."""
        return self.s / self.a

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of powers, (a / s)^2."""
        return (self.a / self.s) ** 2

    @property
    def logsnr(self) -> Tensor:
        """log (a / s)^2."""
        return 2 * (self.a.log() - self.s.log())

    @property
    def angle(self) -> Tensor:
        """atan2(s, a): 0 is clean, pi / 2 is pure noise; finite everywhere."""
        return torch.atan2(self.s, self.a)

    def like(self, x: Tensor) -> Level:
        """The level in x's type and device, `[B]` reshaped to `[B, 1, ..., 1]` so that it multiplies x `[B, *S]`."""
        return Level(expand_like(self.a, x), expand_like(self.s, x))

    def rows(self, rows: slice | Tensor) -> Level:
        """Some rows of a `[B]` level, by a slice or by indices on any device; a `[]` level is every row's."""
        if self.a.ndim == 0:
            return self
        rows = rows.to(self.a.device) if isinstance(rows, Tensor) else rows
        return Level(self.a[rows], self.s[rows])

    def corrupt(self, x0: Tensor, noise: Tensor) -> Tensor:
        """a * x0 + s * noise, `[B, *S]`."""
        a, s = self.like(x0)
        return a * x0 + s * noise

    def noisier(self, other: Level) -> bool:
        """Whether this `[]` level has more noise relative to signal than the other; finite arithmetic at a = 0 too."""
        return bool(self.s * other.a > other.s * self.a)


def expand_like(v: Tensor, x: Tensor) -> Tensor:
    """A number `[]` or one a row `[B]` in x's type and device, shaped `[B, 1, ..., 1]` to multiply x `[B, *S]`."""
    v = v.to(x)
    return v if v.ndim == 0 else v.reshape(-1, *[1] * (x.ndim - 1))


def sigma_level(sigma: Tensor) -> Level:
    """The level (1, sigma), the gauge of EDM and of variance-exploding diffusion."""
    return Level(torch.ones_like(sigma), sigma)


def logsnr_level(logsnr: Tensor) -> Level:
    """The variance-preserving level (a^2 + s^2 = 1) of a log-SNR; stable at both ends."""
    return Level(torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt())


@dataclass(frozen=True)
class NoiseSchedule:
    """A curve of levels: `schedule(t)` is the level at t, `schedule.invert(logsnr)` the t with that log-SNR.

    Larger t is noisier. t runs over [0, 1] unless the preset says otherwise.
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
        # With r = a / s: a = r (1 - a^2), whose positive root is 2 / (1/r + sqrt(1/r^2 + 4)).
        sigma = torch.exp(-g / 2)
        a = 2 / (sigma + torch.sqrt(sigma**2 + 4))
        return _vp_time(-2 * a.log(), beta_min, beta_max)

    return NoiseSchedule(at, invert)


def _vp_integral(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return t**2 * (beta_max - beta_min) / 2 + t * beta_min


def _vp_time(integral: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return 2 * integral / (beta_min + torch.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * integral))


def betas(steps: Sequence[float] | Tensor) -> NoiseSchedule:
    """The discrete variance-preserving chain a_t^2 = prod (1 - beta), t = 0 ... N - 1; between integers log-SNR is linear.

    Ho et al. 2020 (arXiv 2006.11239), eq. 4.
    """
    beta = torch.as_tensor(steps, dtype=torch.float64)
    log_keep = torch.cumsum(torch.log1p(-beta), 0)
    table = log_keep - torch.log(-torch.expm1(log_keep))  # log-SNR, falling

    def at(t: Tensor) -> Level:
        low = t.floor().long().clamp(0, len(table) - 2)
        here = table.to(t.device)
        return logsnr_level(torch.lerp(here[low], here[low + 1], t.double() - low))

    def invert(g: Tensor) -> Tensor:
        here = table.to(g.device)
        low = torch.searchsorted(-here, -g.double().contiguous()).sub(1).clamp(0, len(table) - 2)
        return low + (g.double() - here[low]) / (here[low + 1] - here[low])

    return NoiseSchedule(at, invert)


def linear_betas(n: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """DDPM's schedule of n betas, `[n]` float64."""
    return torch.linspace(first, last, n, dtype=torch.float64)


def cosine_betas(n: int = 4000, offset: float = 0.008, largest: float = 0.999) -> Tensor:
    """The cosine schedule, `[n]` float64. Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17."""
    t = torch.arange(n + 1, dtype=torch.float64) / n
    keep = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    return (1 - keep[1:] / keep[:-1]).clamp(max=largest)


def trig() -> NoiseSchedule:
    """(cos, sin) of pi t / 2: v-diffusion's cosine path (arXiv 2202.00512) and TrigFlow (arXiv 2410.11081)."""
    return NoiseSchedule(
        lambda t: Level(torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)),
        lambda g: torch.atan(torch.exp(-g / 2)) * (2 / math.pi),
    )


def linear() -> NoiseSchedule:
    """(1 - t, t): rectified flow (arXiv 2209.03003) and the conditional optimal-transport path (arXiv 2210.02747)."""
    return NoiseSchedule(lambda t: Level(1 - t, t), lambda g: torch.sigmoid(-g / 2))


def logsnr(highest: float = 13.3, lowest: float = -5.0) -> NoiseSchedule:
    """Variance preserving with log-SNR linear in t. Kingma et al. 2021 (arXiv 2107.00630), their fixed schedule."""
    return NoiseSchedule(
        lambda t: logsnr_level(highest + (lowest - highest) * t),
        lambda g: (g - highest) / (lowest - highest),
    )


def shift(schedule: NoiseSchedule, ratio: float) -> NoiseSchedule:
    """The same curve walked so that at every t the log-SNR is 2 log(ratio) higher; ratio < 1 gives more noise.

    Hoogeboom et al. 2023 (arXiv 2301.11093), ratio = 64 / side; on `linear` it is the time shift of arXiv 2403.03206, eq. 23.
    """
    return NoiseSchedule(
        lambda t: schedule(schedule.invert(schedule(t).logsnr + 2 * math.log(ratio))),
        lambda g: schedule.invert(g - 2 * math.log(ratio)),
    )
