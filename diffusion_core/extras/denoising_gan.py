"""The denoising diffusion GAN: a few large steps, each by a conditional GAN. Xiao et al. 2022 (arXiv 2112.07804).

In a large step x0 given x_t is far from normal, so that a mean does not do: the generator draws x0 from it, with a latent.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_core import losses, schedules
from diffusion_core.conditioning import LATENT, Cond
from diffusion_core.denoiser import log_sigma
from diffusion_core.extras.parts import Adversary, Discriminator, Parts, Versus
from diffusion_core.losses import Weight
from diffusion_core.recipe import Build, Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import ancestral
from diffusion_core.sampling.transition import renoise, transition
from diffusion_core.schedules import Level, expand_like
from diffusion_core.targets import X0


class Drawing(Parts):
    """Draws x0 given x and the latent in condition LATENT; without one, for the latent 0."""

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        given = cond or {}
        if LATENT not in given:
            given = {**given, LATENT: torch.zeros_like(x)}
        scaled = x * expand_like(1 / torch.hypot(level.a * self.sd, level.s), x)
        return self.sd * self.run("generator", scaled, self.c_noise(level), given)


def ddgan(sd: float = 1.0, steps: int = 4, gamma: float = 0.1) -> Recipe:
    """`steps` steps on the variance-preserving schedule; the discriminator judges x at the next level beside x at this one.

    Real pairs are drawn by the forward process; in the generator's, its x0 is carried to the next level by the posterior (eq.
    6). The loss is `parts.Versus` with penalty gamma, in units of the standard deviation of x. Sampling takes these steps,
    whatever number is asked for.
    """
    visited = timesteps.uniform(schedules.vp(), steps, low=0.0)
    visited = [*visited[:-1], timesteps.clean()]
    table = Level(*(torch.stack(parts) for parts in zip(*visited, strict=True)))
    versus = Versus(gamma, 0.05)

    def pair(x0: Tensor, level: Level, noise: Tensor) -> tuple[Level, Level, Tensor, Tensor]:
        """The level, the next one, and x at both. A level that is not visited counts as the nearest that is."""
        angles = table.angle[:-1].to(level.a.device)
        index = (level.angle.reshape(-1, 1) - angles).abs().argmin(1).expand(len(x0))
        here, to = (table.rows(rows.cpu()) for rows in (index, index + 1))
        here, to = (Level(one.a.to(x0.device), one.s.to(x0.device)) for one in (here, to))
        later = to.corrupt(x0, noise)
        return here, to, renoise(later, to, here, torch.randn_like(x0)), later

    def both(denoiser: Drawing, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> tuple[Tensor, ...]:
        """What the discriminator gets, in units of standard deviations: real and drawn x, x before, noise embedding."""
        here, to, x, real = pair(x0, level, noise)
        drawn = denoiser(x, here, {**cond, LATENT: torch.randn_like(x0)})
        fake = transition(x, drawn, here, to, 1.0, torch.randn_like(x0))
        scale = expand_like(1 / torch.hypot(to.a * sd, to.s), x0)
        before = x * expand_like(1 / torch.hypot(here.a * sd, here.s), x0)
        return real * scale, fake * scale, before, denoiser.c_noise(here)

    def loss(denoiser: Drawing, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        real, fake, before, c_noise = both(denoiser, x0, level, noise, cond)
        return versus(denoiser, real, fake, c_noise, cond, before)

    def error(denoiser: Drawing, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        here, _, x, _ = pair(x0, level, noise)
        drawn = denoiser(x, here, {**cond, LATENT: torch.zeros_like(x0)})
        out: Tensor = (drawn - x0).square().flatten(1).mean(1)
        return out

    def nets(build: Build) -> nn.Module:
        return nn.ModuleDict({
            "generator": Adversary(build((LATENT,), 1)), "discriminator": Discriminator(build((LATENT,), 1)),
        })  # fmt: skip

    return Recipe(
        target=X0, density=losses.one_of(visited[:-1]), weight=lambda level: torch.ones_like(level.a),
        timesteps=lambda n: visited, step=ancestral, sd=sd, c_noise=log_sigma, form=Drawing, loss=loss, error=error,
        nets=nets, fresh=True,
    )  # fmt: skip
