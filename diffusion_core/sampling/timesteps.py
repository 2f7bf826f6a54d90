"""Walks: the lists of levels that a sampler visits. A walk may go up again; the sampling loop then adds noise.

Each level is `[]` float64. A walk of n steps has n + 1 levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core.schedules import Level, NoiseSchedule, sigma_level

Timesteps = Sequence[Level]


def levels(schedule: NoiseSchedule, times: Tensor) -> list[Level]:
    """The path's levels at times `[n]`."""
    a, s = schedule(times.double())
    return [Level(*pair) for pair in zip(a, s, strict=True)]


def detached(timesteps: Timesteps) -> list[Level]:
    """The walk's numbers without their history of gradients, as from a learned schedule."""
    return [Level(here.a.detach(), here.s.detach()) for here in timesteps]


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
    """n of a discrete path's `total` levels, counted from the noisiest, then clean. Lin et al. 2023 (arXiv 2305.08891)."""
    times = torch.arange(n, 0, -1, dtype=torch.float64).mul(total / n).round().sub(1)
    return [*levels(schedule, times), clean()]


def leading(schedule: NoiseSchedule, n: int, total: int) -> list[Level]:
    """n of a discrete path's `total` levels, counted from the cleanest, then clean, as DDIM was published."""
    return [*levels(schedule, torch.arange(n - 1, -1, -1, dtype=torch.float64) * (total // n)), clean()]


def truncate(timesteps: Timesteps, level: Level) -> list[Level]:
    """The walk from `level` on: started late, with x from elsewhere.

    TDPM (arXiv 2202.09671), ES-DDPM (arXiv 2205.12524), CCDF (arXiv 2112.05146), SDEdit (arXiv 2108.01073).
    """
    return [level, *(here for here in timesteps if level.noisier(here))]


def churn(timesteps: Timesteps, amount: float, low: float = 0.0, high: float = float("inf")) -> list[Level]:
    """Before each step, sigma raised by min(amount / n, sqrt(2) - 1) of itself where low <= sigma <= high.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
    """
    gamma = min(amount / (len(timesteps) - 1), 2**0.5 - 1)
    out = list(timesteps[:1])
    for here in timesteps[1:]:
        last = out[-1]
        if gamma > 0 and low <= last.sigma <= high:
            out.append(Level(last.a, last.s * (1 + gamma)))
        out.append(here)
    return out


def restart(timesteps: Timesteps, low: float, high: float, times: int) -> list[Level]:
    """The part of the walk between sigma = low and high walked again `times` times, each time from high with fresh noise.

    Xu et al. 2023 (arXiv 2306.14878), algorithm 1.
    """
    inside = [here for here in timesteps if low <= here.sigma <= high]
    if not inside:
        raise ValueError(f"the walk has no level with sigma between {low} and {high}")
    after = [here for here in timesteps if here.sigma < low]
    before = [here for here in timesteps if not here.sigma < low]
    return [*before, *inside * times, *after]


def repaint(timesteps: Timesteps, times: int) -> list[Level]:
    """Every step but the last taken `times` times, noise added back in between. Lugmayr et al. 2022 (arXiv 2201.09865)."""
    out = list(timesteps[:1])
    for last, here in pairwise(timesteps[:-1]):
        out += [here, *[last, here] * (times - 1)]
    return [*out, timesteps[-1]]


def repeat_levels(timesteps: Timesteps, times: int) -> list[Level]:
    """Every noisy level visited `times` more times, for Langevin steps there. Song & Ermon 2019 (arXiv 1907.05600)."""
    return [here for level in timesteps for here in [level] * (1 + (times if level.s > 0 else 0))]
