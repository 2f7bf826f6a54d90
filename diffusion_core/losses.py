"""The training objective: a draw of u in (0, 1), a density that makes it a level, a weight, and one loss.

The loss estimates  integral w(level) E||x0_hat - x0||^2 p(level) d level:  only the product of weight and density decides
what is learned, the density alone decides how noisy the estimate is. Kingma & Gao 2023 (arXiv 2303.00848).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.conditioning import KEEP, Cond, without
from diffusion_core.schedules import Level, NoiseSchedule, sigma_level
from diffusion_core.targets import Target, unit_weight

Draw = Callable[[int, int, int], Tensor]  # (seed, first image number, batch over all ranks) -> u [batch]
Density = Callable[[Tensor], Level]  # u [B] -> level [B], by an inverse distribution function
Weight = Callable[[Level], Tensor]  # level [B] -> [B], of the squared error of x0


def iid(seed: int, nimg: int, batch: int) -> Tensor:
    """Independent u for images nimg ... nimg + batch - 1, `[batch]` float64; image i's does not depend on the batch."""
    return rng.uniform((), seed, torch.arange(nimg, nimg + batch))


def stratified(seed: int, nimg: int, batch: int) -> Tensor:
    """u = (u0 + i / batch) mod 1: one offset for the whole batch, evenly spaced, each u still uniform.

    Kingma et al. 2021 (arXiv 2107.00630), Appendix I.1. Being over the whole batch it covers ranks and accumulation.
    """
    first = rng.uniform((), seed, torch.tensor([nimg]))
    return (first + torch.arange(batch, dtype=torch.float64) / batch).remainder(1).clamp(2.0**-54, 1 - 2.0**-53)


def uniform(schedule: NoiseSchedule, low: float = 0.0, high: float = 1.0) -> Density:
    """t uniform in (low, high) on the schedule."""
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


def geometric(low: float, high: float) -> Density:
    """log sigma uniform between log low and log high."""
    return lambda u: sigma_level(torch.exp(math.log(low) + math.log(high / low) * u))


def one_of(levels: Sequence[Level]) -> Density:
    """One of the levels, each as likely."""
    table = Level(torch.stack([here.a for here in levels]), torch.stack([here.s for here in levels]))
    return lambda u: table.rows((u * len(levels)).long().clamp(max=len(levels) - 1))


def unit(target: Target) -> Weight:
    """Plain squared error of what the network predicts."""
    return partial(unit_weight, target)


def loss(
    denoiser: Callable[[Tensor, Level, Cond], Tensor],
    x0: Tensor,
    level: Level,
    noise: Tensor,
    weight: Weight,
    cond: Cond | None = None,
) -> Tensor:
    """weight(level) * mean over an example of (x0_hat - x0)^2, one number an example, `[B]`."""
    x0_hat = denoiser(level.corrupt(x0, noise), level, cond or {})
    return weight(level).to(x0) * (x0_hat - x0).square().flatten(1).mean(1)


def paired_loss(
    denoiser: Callable[[Tensor, Level, Cond], Tensor],
    x0: Tensor,
    level: Level,
    noise: Tensor,
    weight: Weight,
    cond: Cond,
) -> Tensor:
    """The loss with the noise that belongs to x0, given by the data as condition `pair:noise`, instead of a fresh one.

    With pairs (noise, what a flow makes of it) this is reflow. Liu et al. 2023 (arXiv 2209.03003), section 2.2.
    """
    return loss(denoiser, x0, level, cond["pair:noise"].to(x0), weight, without(cond, "pair:noise"))


class SelfConditioned(nn.Module):
    """A loss of a denoiser that is shown, in half of the rows, its own first estimate as condition `key`.

    `inner` is the loss that it would have otherwise, of any recipe; a module among them goes on learning. No gradient flows
    through the first estimate. Chen et al. 2022 (arXiv 2208.04202), algorithm 1. `guide.self_condition` samples.
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
        shown = first.flatten(1) if self.key.startswith("vec:") else first
        keep = torch.rand(len(x0), device=x0.device) < 0.5  # seeded by the training loop at every step
        return self.inner(denoiser, x0, level, noise, weight, {**cond, self.key: shown, KEEP + self.key: keep})
