"""Optimising timesteps: by dynamic programming over a grid, or by gradient descent through the sampler."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.sampling.loop import Step, sample
from diffusion_core.sampling.timesteps import Timesteps, clean, detached
from diffusion_core.schedules import Level, sigma_level


def elbo_cost(timesteps: Timesteps, errors: Sequence[float] | Tensor) -> Tensor:
    """The cost of each possible step i -> j in the variational bound, `[N, N]` nats per dimension; infinite if j is noisier.

    It is (SNR_j - SNR_i) / 2 times the mean squared error of x0 at level i, `errors` `[N]`. The levels need s > 0. Watson et
    al. 2021 (arXiv 2106.03802); Bao et al. 2022 (arXiv 2201.06503), section 4.
    """
    snr = torch.stack([level.snr for level in timesteps])
    cost = (snr[None] - snr[:, None]) / 2 * torch.as_tensor(errors, dtype=snr.dtype)[:, None]
    return torch.where(snr[None] > snr[:, None], cost, torch.inf)


def shortest_path(cost: Tensor, steps: int) -> list[int]:
    """The cheapest path of exactly `steps` steps from the first to the last index, as `steps` + 1 indices.

    Raises ValueError if there is no such path.
    """
    n = len(cost)
    best = torch.full((steps + 1, n), torch.inf, dtype=cost.dtype)
    predecessor = torch.zeros(steps + 1, n, dtype=torch.long)
    best[0, 0] = 0
    for k in range(1, steps + 1):
        best[k], predecessor[k] = (best[k - 1][:, None] + cost).min(0)
    if not bool(best[steps, -1].isfinite()):
        raise ValueError(f"no path of {steps} steps between {n} levels")
    path = [n - 1]
    for k in range(steps, 0, -1):
        path.append(int(predecessor[k, path[-1]]))
    return path[::-1]


def learn_timesteps(
    timesteps: Timesteps,
    loss: Callable[[list[Level]], Tensor],
    iterations: int = 100,
    rate: float = 0.02,
) -> list[Level]:
    """The timesteps with their inner levels optimised by gradient descent on loss(timesteps).

    `loss` runs a sampler and evaluates its samples; Watson et al. 2022 (arXiv 2202.05830) use a perceptual loss. The first and
    the last noisy level are fixed, and log sigma stays sorted by construction. All sigmas must be finite. A last level with
    s = 0 is kept.
    """
    noisy = [level for level in timesteps if level.s > 0]
    logs = torch.stack([level.sigma for level in noisy]).log().detach()
    logits = torch.log((logs[:-1] - logs[1:]) / (logs[0] - logs[-1])).requires_grad_()
    tail = [clean()] if len(noisy) < len(timesteps) else []

    def build() -> list[Level]:
        fractions = torch.softmax(logits, 0).cumsum(0)[:-1]
        inner = logs[0] + (logs[-1] - logs[0]) * fractions
        sigmas = torch.cat([logs[:1], inner, logs[-1:]]).exp()
        return [*map(sigma_level, sigmas), *tail]

    optimizer = torch.optim.Adam([logits], lr=rate)
    best, best_loss = build(), float("inf")
    for _ in range(iterations):
        candidate = build()
        value = loss(candidate)
        if float(value.detach()) < best_loss:
            best, best_loss = candidate, float(value.detach())
        optimizer.zero_grad()
        torch.autograd.backward(value)
        optimizer.step()
    return detached(best)


def match_solution(
    denoiser: Denoiser,
    step: Step,
    timesteps: Timesteps,
    fine: Timesteps,
    noise: Tensor,
    cond: Cond | None = None,
    iterations: int = 50,
    rate: float = 0.05,
) -> list[Level]:
    """The timesteps, learned so that the samples from the given noise `[B, *S]` are those of the many timesteps `fine`.

    For deterministic steps; both begin at the same level. The loss is the mean squared difference, which needs no data. Tong et
    al. 2024 (arXiv 2405.15506), who use a perceptual distance of pictures.
    """
    start = timesteps[0]
    x = start.s.to(noise) * noise
    with torch.no_grad():
        goal = sample(denoiser, x, fine, step, iter(()), cond)

    def loss(candidate: list[Level]) -> Tensor:
        # The learned levels have a = 1: x is scaled accordingly.
        return (sample(denoiser, x / start.a.to(x), candidate, step, iter(()), cond) - goal).square().mean()

    return learn_timesteps(timesteps, loss, iterations, rate)
