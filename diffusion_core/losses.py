"""The training objective: draw u in (0, 1), map it to a noise level by a density, and weight the denoising error.

The loss estimates the integral of w(level) E||x0_hat - x0||^2 p(level) over levels. Only the product of weight w and density
p decides what is learned; the density alone decides the variance of the estimate. Kingma & Gao 2023 (arXiv 2303.00848).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.conditioning import KEEP, WEIGHT, Cond, without
from diffusion_core.schedules import Level, NoiseSchedule, expand_like, sigma_level
from diffusion_core.targets import Target, unit_weight

Draw = Callable[[int, int, int], Tensor]  # (seed, first image number, batch over all ranks) -> u [batch]
Density = Callable[[Tensor], Level]  # u [B] -> level [B], by an inverse distribution function
Weight = Callable[[Level], Tensor]  # level [B] -> [B], of the squared error of x0
Penalty = Callable[[Tensor], Tensor]  # an error, weighted -> what it costs, elementwise


def iid(seed: int, nimg: int, batch: int) -> Tensor:
    """Independent u for images nimg ... nimg + batch - 1, `[batch]` float64; an image's u does not depend on its batch."""
    return rng.uniform((), seed, torch.arange(nimg, nimg + batch))


def stratified(seed: int, nimg: int, batch: int) -> Tensor:
    """u = (u0 + i / batch) mod 1: evenly spaced over the batch with one random offset; each u alone is uniform.

    Kingma et al. 2021 (arXiv 2107.00630), appendix I.1. The batch is the total batch over all ranks and micro-batches.
    """
    first = rng.uniform((), seed, torch.tensor([nimg]))
    return (first + torch.arange(batch, dtype=torch.float64) / batch).remainder(1).clamp(2.0**-54, 1 - 2.0**-53)


def uniform(schedule: NoiseSchedule, low: float = 0.0, high: float = 1.0) -> Density:
    """t uniform in (low, high)."""
    return lambda u: schedule(low + (high - low) * u)


def discrete(schedule: NoiseSchedule, n: int) -> Density:
    """t uniform on the integers 0 ... n - 1."""
    return lambda u: schedule((u * n).floor().clamp(max=n - 1))


def lognormal(mean: float, std: float) -> Density:
    """log sigma normal with this mean and standard deviation. Karras et al. 2022 (arXiv 2206.00364), Table 1."""
    return lambda u: sigma_level(torch.exp(mean + std * torch.special.ndtri(u)))


def logitnormal(schedule: NoiseSchedule, mean: float = 0.0, std: float = 1.0) -> Density:
    """logit t normal. Esser et al. 2024 (arXiv 2403.03206), section 3.1."""
    return lambda u: schedule(torch.sigmoid(mean + std * torch.special.ndtri(u)))


def geometric(sigma_min: float, sigma_max: float) -> Density:
    """log sigma uniform between log sigma_min and log sigma_max."""
    return lambda u: sigma_level(torch.exp(math.log(sigma_min) + math.log(sigma_max / sigma_min) * u))


def one_of(levels: Sequence[Level]) -> Density:
    """One of the levels, all equally likely."""
    table = Level(torch.stack([level.a for level in levels]), torch.stack([level.s for level in levels]))
    return lambda u: table.rows((u * len(levels)).long().clamp(max=len(levels) - 1))


def unit(target: Target) -> Weight:
    """The weight that makes the loss the plain squared error of the network's prediction."""
    return partial(unit_weight, target)


def loss(
    denoiser: Callable[[Tensor, Level, Cond], Tensor],
    x0: Tensor,
    level: Level,
    noise: Tensor,
    weight: Weight,
    cond: Cond | None = None,
) -> Tensor:
    """weight(level) * (x0_hat - x0)^2, averaged over each example, `[B]`.

    Condition `weight:x` weighs the coordinates. Positive weights do not move the minimum, which is the posterior mean.
    """
    x0_hat = denoiser(level.corrupt(x0, noise), level, cond or {})
    error = (x0_hat - x0).square()
    if cond is not None and WEIGHT in cond:
        error = error * cond[WEIGHT]
    return weight(level).to(x0) * error.flatten(1).mean(1)


def absolute(error: Tensor) -> Tensor:
    """|error|: the minimum is the posterior median of each coordinate. Saharia et al. 2021 (arXiv 2111.05826), section 3."""
    return error.abs()


def pseudo_huber(error: Tensor, c: float = 0.1) -> Tensor:
    """2 c (sqrt(error^2 + c^2) - c): error^2 for errors far below c, 2 c |error| far above. Song & Dhariwal 2023
    (arXiv 2310.14189), section 3.3, times 2 c."""
    return 2 * c * ((error.square() + c**2).sqrt() - c)


class Penalised:
    """`loss` with another cost than the square: penalty(sqrt(weight(level)) * (x0_hat - x0)), the mean of each example, `[B]`.

    With `unit` weight it is the cost of an error of the network's prediction. Condition `weight:x` weighs the coordinates.
    """

    def __init__(self, penalty: Penalty) -> None:
        self.penalty = penalty

    def __call__(
        self,
        denoiser: Callable[[Tensor, Level, Cond], Tensor],
        x0: Tensor,
        level: Level,
        noise: Tensor,
        weight: Weight,
        cond: Cond,
    ) -> Tensor:
        error = denoiser(level.corrupt(x0, noise), level, cond) - x0
        cost = self.penalty(expand_like(weight(level).sqrt(), x0) * error)
        if WEIGHT in cond:
            cost = cost * cond[WEIGHT]
        return cost.flatten(1).mean(1)


def paired_loss(
    denoiser: Callable[[Tensor, Level, Cond], Tensor],
    x0: Tensor,
    level: Level,
    noise: Tensor,
    weight: Weight,
    cond: Cond,
) -> Tensor:
    """The loss with noise from the data, given as condition `pair:noise`, instead of the independent `noise`.

    With pairs (noise, the sample that a flow generates from it) this is reflow. Liu et al. 2023 (arXiv 2209.03003), section
    2.2.
    """
    return loss(denoiser, x0, level, cond["pair:noise"].to(x0), weight, without(cond, "pair:noise"))


class SelfConditioned(nn.Module):
    """Self-conditioning: in a random half of the rows the denoiser gets its own first estimate as condition `key`.

    `inner` is any recipe's loss; if it is a module, its parameters are trained as usual. No gradient flows through the first
    estimate. Chen et al. 2022 (arXiv 2208.04202), algorithm 1. Sample with `guidance.self_condition`.
    """

    def __init__(self, key: str, inner: Callable[..., Tensor] = loss) -> None:
        super().__init__()
        self.key = key
        self.inner = inner

    def forward(
        self,
        denoiser: Callable[[Tensor, Level, Cond], Tensor],
        x0: Tensor,
        level: Level,
        noise: Tensor,
        weight: Weight,
        cond: Cond,
    ) -> Tensor:
        """The inner loss, `[B]`."""
        with torch.no_grad():
            first = denoiser(level.corrupt(x0, noise), level, without(cond, self.key))
        estimate = first.flatten(1) if self.key.startswith("vec:") else first
        keep = torch.rand(len(x0), device=x0.device) < 0.5  # the training loop seeds torch at every step
        return self.inner(denoiser, x0, level, noise, weight, {**cond, self.key: estimate, KEEP + self.key: keep})


class WithTerm(nn.Module):
    """`inner`, and a further cost of the estimate of x0: inner + weight(level) * term(x0_hat, x0, cond), `[B]`.

    `inner` is a loss that evaluates the denoiser on the noisy example, last of all.
    """

    def __init__(self, term: Callable[[Tensor, Tensor, Cond], Tensor], inner: Callable[..., Tensor] = loss) -> None:
        super().__init__()
        self.term, self.inner = term, inner

    def forward(
        self,
        denoiser: Callable[[Tensor, Level, Cond], Tensor],
        x0: Tensor,
        level: Level,
        noise: Tensor,
        weight: Weight,
        cond: Cond,
    ) -> Tensor:
        """Both costs, `[B]`."""
        estimates: list[Tensor] = []

        def kept(x: Tensor, level: Level, cond: Cond) -> Tensor:
            estimates.append(denoiser(x, level, cond))
            return estimates[-1]

        cost: Tensor = self.inner(kept, x0, level, noise, weight, cond)
        return cost + weight(level).to(x0) * self.term(estimates[-1], x0, cond)
