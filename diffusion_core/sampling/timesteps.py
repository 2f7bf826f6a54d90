"""Timesteps: the list of noise levels that a sampler visits, n + 1 levels for n steps, each `[]` float64.

The levels need not be decreasing. Where a level is noisier than the one before it, the sampling loop adds noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core.schedules import Level, NoiseSchedule, sigma_level

Timesteps = Sequence[Level]


def levels(schedule: NoiseSchedule, times: Tensor) -> list[Level]:
    """The schedule's levels at times `[n]`."""
    a, s = schedule(times.double())
    return [Level(*pair) for pair in zip(a, s, strict=True)]


def detached(timesteps: Timesteps) -> list[Level]:
    """The levels without gradient history, for timesteps on a learned schedule."""
    return [Level(level.a.detach(), level.s.detach()) for level in timesteps]


def clean() -> Level:
    """The level without noise, (1, 0)."""
    return sigma_level(torch.tensor(0.0, dtype=torch.float64))


def karras(n: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[Level]:
    """n sigmas from sigma_max to sigma_min, evenly spaced in sigma^(1 / rho), then 0.

    Karras et al. 2022 (arXiv 2206.00364), eq. 5.
    """
    ramp = torch.linspace(1, 0, n, dtype=torch.float64)
    sigma = (sigma_min ** (1 / rho) + ramp * (sigma_max ** (1 / rho) - sigma_min ** (1 / rho))) ** rho
    return [*map(sigma_level, sigma), clean()]


def geometric(n: int, sigma_min: float, sigma_max: float) -> list[Level]:
    """n sigmas from sigma_max to sigma_min, evenly spaced in log sigma, without a last step to 0. Song & Ermon 2019."""
    return [
        sigma_level(s) for s in torch.logspace(0, 1, n, base=sigma_min / sigma_max, dtype=torch.float64) * sigma_max
    ]


def uniform(schedule: NoiseSchedule, n: int, high: float = 1.0, low: float = 0.0) -> list[Level]:
    """n steps evenly spaced in t from high to low."""
    return levels(schedule, torch.linspace(high, low, n + 1, dtype=torch.float64))


def trailing(schedule: NoiseSchedule, n: int, total: int) -> list[Level]:
    """n of a discrete schedule's `total` levels, evenly spaced from the noisiest, then s = 0. arXiv 2305.08891, section 3.3."""
    _check_count(n, total)
    times = torch.arange(n, 0, -1, dtype=torch.float64).mul(total / n).round().sub(1)
    return [*levels(schedule, times), clean()]


def leading(schedule: NoiseSchedule, n: int, total: int) -> list[Level]:
    """n of a discrete schedule's `total` levels, evenly spaced from the least noisy, then s = 0. DDIM (arXiv 2010.02502)."""
    _check_count(n, total)
    return [*levels(schedule, torch.arange(n - 1, -1, -1, dtype=torch.float64) * (total // n)), clean()]


def _check_count(n: int, total: int) -> None:
    if not 1 <= n <= total:
        raise ValueError(f"a discrete schedule of {total} levels allows 1 to {total} steps, not {n}")


def truncate(timesteps: Timesteps, level: Level) -> list[Level]:
    """The timesteps that are less noisy than `level`, after `level` itself. The start x comes from another model or an example.

    TDPM (arXiv 2202.09671), ES-DDPM (arXiv 2205.12524), CCDF (arXiv 2112.05146), SDEdit (arXiv 2108.01073).
    """
    return [level, *(later for later in timesteps if level.noisier(later))]


def churn(timesteps: Timesteps, s_churn: float, s_tmin: float = 0.0, s_tmax: float = float("inf")) -> list[Level]:
    """Before each step, raise sigma by the factor 1 + min(s_churn / n, sqrt(2) - 1) if s_tmin <= sigma <= s_tmax.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
    """
    gamma = min(s_churn / (len(timesteps) - 1), 2**0.5 - 1)
    churned = list(timesteps[:1])
    for level in timesteps[1:]:
        last = churned[-1]
        if gamma > 0 and s_tmin <= last.sigma <= s_tmax:
            churned.append(Level(last.a, last.s * (1 + gamma)))
        churned.append(level)
    return churned


def restart(timesteps: Timesteps, low: float, high: float, times: int) -> list[Level]:
    """The timesteps with low <= sigma <= high repeated `times` times, each time from the noisiest with new noise.

    Xu et al. 2023 (arXiv 2306.14878), algorithm 1. Raises ValueError if there is no level in the interval.
    """
    inside = [level for level in timesteps if low <= level.sigma <= high]
    if not inside:
        raise ValueError(f"there is no timestep with sigma between {low} and {high}")
    after = [level for level in timesteps if level.sigma < low]
    before = [level for level in timesteps if not level.sigma < low]
    return [*before, *inside * times, *after]


def repaint(timesteps: Timesteps, times: int) -> list[Level]:
    """Every step but the last made `times` times, with noise added in between. Lugmayr et al. 2022 (arXiv 2201.09865)."""
    repeated = list(timesteps[:1])
    for level, to in pairwise(timesteps[:-1]):
        repeated += [to, *[level, to] * (times - 1)]
    return [*repeated, timesteps[-1]]


def repeat_levels(timesteps: Timesteps, times: int) -> list[Level]:
    """Every noisy level repeated `times` more times, for Langevin steps. Song & Ermon 2019 (arXiv 1907.05600)."""
    return [copy for level in timesteps for copy in [level] * (1 + (times if level.s > 0 else 0))]
