"""Choosing the levels of a walk: by dynamic programming over a grid, or by gradient descent through the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_core.sampling.timesteps import Timesteps, clean
from diffusion_core.schedules import Level, sigma_level


def elbo_cost(timesteps: Timesteps, errors: Sequence[float] | Tensor) -> Tensor:
    """What each jump costs in the variational bound, `[N, N]` nats a dimension; infinite where it does not go down.

    The step i -> j costs (SNR_j - SNR_i) / 2 times the mean squared error of x0 at level i, `errors` `[N]`. The levels need
    s > 0. Watson et al. 2021 (arXiv 2106.03802); Bao et al. 2022 (arXiv 2201.06503), section 4.
    """
    snr = torch.stack([level.snr for level in timesteps])
    cost = (snr[None] - snr[:, None]) / 2 * torch.as_tensor(errors, dtype=snr.dtype)[:, None]
    return torch.where(snr[None] > snr[:, None], cost, torch.inf)


def shortest_path(cost: Tensor, steps: int) -> list[int]:
    """The cheapest way of exactly `steps` jumps from the first to the last index, as `steps` + 1 indices.

    Raises ValueError if there is none.
    """
    n = len(cost)
    best = torch.full((steps + 1, n), torch.inf, dtype=cost.dtype)
    came = torch.zeros(steps + 1, n, dtype=torch.long)
    best[0, 0] = 0
    for k in range(1, steps + 1):
        best[k], came[k] = (best[k - 1][:, None] + cost).min(0)
    if not bool(best[steps, -1].isfinite()):
        raise ValueError(f"no way of {steps} steps among {n} levels")
    way = [n - 1]
    for k in range(steps, 0, -1):
        way.append(int(came[k, way[-1]]))
    return way[::-1]


def learn_timesteps(
    timesteps: Timesteps,
    loss: Callable[[list[Level]], Tensor],
    iterations: int = 100,
    rate: float = 0.02,
) -> list[Level]:
    """The walk with its inner levels moved by gradient descent on loss(timesteps), which runs a sampler and judges its samples.

    The first and the last noisy level stay; log sigma between them stays sorted by construction. Watson et al. 2022
    (arXiv 2202.05830) has this form with a perceptual loss. The walk ends clean or not, as given; sigmas must be finite.
    """
    noisy = [level for level in timesteps if level.s > 0]
    logs = torch.stack([level.sigma for level in noisy]).log().detach()
    gaps = torch.log((logs[:-1] - logs[1:]) / (logs[0] - logs[-1])).requires_grad_()
    tail = [clean()] if len(noisy) < len(timesteps) else []

    def build() -> list[Level]:
        falls = torch.softmax(gaps, 0).cumsum(0)[:-1]
        inner = logs[0] + (logs[-1] - logs[0]) * falls
        sigmas = torch.cat([logs[:1], inner, logs[-1:]]).exp()
        return [*map(sigma_level, sigmas), *tail]

    optimizer = torch.optim.Adam([gaps], lr=rate)
    best, best_loss = build(), float("inf")
    for _ in range(iterations):
        here = build()
        value = loss(here)
        if float(value.detach()) < best_loss:
            best, best_loss = here, float(value.detach())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return [Level(level.a.detach(), level.s.detach()) for level in best]
