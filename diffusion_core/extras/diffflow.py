"""DiffFlow: a diffusion model that learns its forward process too. Zhang & Chen 2021 (arXiv 2110.07579).

The forward process has no closed-form marginals: training walks through all its steps, and gradients flow back through them.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from diffusion_core import schedules
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Posterior
from diffusion_core.extras.learned_variance import LearnedVariance
from diffusion_core.extras.parts import LOG_2PI, Parts
from diffusion_core.losses import Weight
from diffusion_core.recipe import Build, Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import ancestral
from diffusion_core.sampling.transition import split_noise
from diffusion_core.schedules import Level, expand_like
from diffusion_core.targets import edm as edm_target
from diffusion_core.targets import to_x0


class TwoWays(Parts, LearnedVariance):
    """The backward process as a denoiser, and the learned part of the forward one.

    The backward step is an ancestral step to the next level given the network's estimate of x0, with a learned variance at each
    level. With a learned forward process the estimate is only a way to write down the mean of the step.
    """

    def posterior(self, x: Tensor, level: Level, cond: Cond | None = None) -> Posterior:
        scaled = x * expand_like(1 / torch.hypot(level.a * self.sd, level.s), x)
        y, log_share = self.run("denoiser", scaled, self.c_noise(level), cond or {}).chunk(2, 2 if x.ndim == 3 else 1)
        largest = (level.s * self.sd) ** 2 / ((level.a * self.sd) ** 2 + level.s**2)
        var = expand_like(largest, x) * torch.exp(log_share.clamp(-12, 4))
        return Posterior(to_x0(y, x, level, self.target), var)

    def drift(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """What the forward process adds in a step from this level, besides the schedule's own; in standard deviations of x."""
        scaled = x * expand_like(1 / torch.hypot(level.a * self.sd, level.s), x)
        return self.run("drift", scaled, self.c_noise(level), cond)


def diffflow(sd: float = 0.5, steps: int = 24) -> Recipe:
    """The negative evidence lower bound over whole paths, in nats a coordinate (eq. 12), on `steps` steps.

    A forward step is that of a variance-preserving schedule with log-SNR even from 8 to -6, plus a learned drift, which begins
    as zero. The first step starts at the data. A training example costs 2 `steps` evaluations. Sampling takes the backward
    steps, whatever number is asked for.
    """
    schedule = schedules.logsnr(8.0, -6.0)
    visited = [*timesteps.uniform(schedule, steps - 1), timesteps.clean()]  # the noisiest first

    def nll(denoiser: TwoWays, x0: Tensor, cond: Cond) -> Tensor:
        """-log p(path) + log q(path | x0), `[B]` nats a coordinate."""
        x, total = x0, torch.zeros(len(x0), device=x0.device)
        for to, level in pairwise(reversed(visited)):  # from `to` to the noisier `level`
            to, level = (Level(one.a.to(x.device), one.s.to(x.device)) for one in (to, level))
            ratio = level.a / to.a
            spread = torch.sqrt((level.s**2 - (ratio * to.s) ** 2).clamp(min=0)).to(x)
            noise = torch.randn_like(x)
            scale = torch.hypot(to.a * sd, to.s).to(x)
            # The step is as long as the share of noise that it adds.
            pushed = spread * torch.clamp(spread, max=1) * denoiser.drift(x, _at_least(to, level), cond) * scale / sd
            later = ratio.to(x) * x + pushed + spread * noise
            mean, var = backward(denoiser.posterior(later, level, cond), later, level, to)
            forward_log = -0.5 * (noise.square() + LOG_2PI + 2 * torch.log(spread))
            backward_log = -0.5 * ((x - mean).square() / var + LOG_2PI + torch.log(var))
            total = total + (forward_log - backward_log).flatten(1).mean(1)
            x = later
        end = (visited[0].a * sd) ** 2 + visited[0].s ** 2
        prior = 0.5 * (x.square() / end.to(x) + LOG_2PI + torch.log(end).to(x))
        return total + prior.flatten(1).mean(1)

    def loss(denoiser: TwoWays, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        return nll(denoiser, x0, cond)

    def error(denoiser: TwoWays, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        square = (denoiser(level.corrupt(x0, noise), level, cond) - x0).square()
        out: Tensor = square.flatten(1).mean(1)
        return out

    def nets(build: Build) -> nn.Module:
        return nn.ModuleDict({"denoiser": build((), 2), "drift": build((), 1)})

    return Recipe(
        target=edm_target(sd), density=lambda u: schedule(u), weight=lambda level: torch.ones_like(level.a),
        timesteps=lambda n: visited, step=ancestral, sd=sd, form=TwoWays, loss=loss, error=error, nets=nets,
    )  # fmt: skip


def _at_least(to: Level, level: Level) -> Level:
    """The level itself, or at clean data, where it has no logarithm, a hundredth of the next one."""
    return to if to.s > 0 else Level(to.a, level.s / 100)


def backward(guess: Posterior, x: Tensor, level: Level, to: Level) -> tuple[Tensor, Tensor]:
    """Mean and variance of an ancestral step from x at `level` to `to`, as `transition` makes it with eta = 1."""
    kept, added = split_noise(level, to, 1.0)
    ratio = kept / level.s
    c_x, c_0 = Level(ratio, to.a - ratio * level.a).like(x)
    return c_x * x + c_0 * guess.mean, expand_like(added, x) ** 2 + c_0**2 * guess.var


@torch.no_grad()
def bound(recipe: Recipe, denoiser: TwoWays, x0: Tensor, seed: int = 0, draws: int = 4) -> Tensor:
    """The lower bound on log p(x0) in nats, `[B]`: the mean over `draws` paths."""
    level = recipe.density(torch.zeros(len(x0), dtype=torch.float64))
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        paths = [recipe.loss(denoiser, x0, level, x0, recipe.weight, {}).double() for _ in range(draws)]
    return -torch.stack(paths).mean(0) * x0[0].numel()
