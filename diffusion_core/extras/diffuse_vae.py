"""DiffuseVAE: a variational autoencoder makes a draft, and a diffusion model that sees the draft makes the sample.

Pandey et al. 2022 (arXiv 2201.00308).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from diffusion_core import losses, presets
from diffusion_core.conditioning import DRAFT, WEIGHT, Cond
from diffusion_core.extras.generators import Autoencoder
from diffusion_core.extras.parts import Coder, divergence
from diffusion_core.losses import Weight
from diffusion_core.recipe import Build, Recipe
from diffusion_core.schedules import Level
from diffusion_core.targets import to_x0


class Drafted(Autoencoder):
    """A denoiser that sees the draft as condition DRAFT, in units of the data's standard deviation."""

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        c_in = Level(1 / torch.hypot(level.a * self.sd, level.s), level.s).like(x)[0]
        prediction = self.run("denoiser", c_in * x, self.c_noise(level), cond or {})
        return to_x0(prediction, x, level, self.target)

    def draft(self, z: Tensor, cond: Cond) -> Cond:
        """The conditions with a draft decoded from latents z `[B, *S]`."""
        return {**cond, DRAFT: self.coder.decode(z, cond) / self.sd}


def diffuse_vae(sd: float = 0.5, p_mean: float = -1.2, p_std: float = 1.2) -> Recipe:
    """EDM given the reconstruction of a VAE (the paper's formulation 1, with EDM in place of DDPM).

    Both are trained at once: the denoiser on reconstructions of the current VAE, through which no gradient flows, so that each
    has the objective that it has in the paper's two stages. A sample's draft is decoded from a latent of the standard normal
    law. Every sampler goes with it.
    """
    recipe = presets.edm(sd, p_mean, p_std)

    def loss(denoiser: Drafted, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        mean, log_var = denoiser.coder.encode(x0, cond)
        z = mean + torch.exp(log_var / 2) * torch.randn_like(x0)
        bound = denoiser.coder.reconstruction(x0, z, cond) + divergence(mean, log_var)
        drafted = {key: value.detach() for key, value in denoiser.draft(z, cond).items()}
        return losses.loss(denoiser, x0, level, noise, weight, drafted) + bound

    def error(denoiser: Drafted, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        mean, _ = denoiser.coder.encode(x0, cond)
        square = (denoiser(level.corrupt(x0, noise), level, denoiser.draft(mean, cond)) - x0).square()
        if WEIGHT in cond:
            square = square * cond[WEIGHT]
        out: Tensor = square.flatten(1).mean(1)
        return out

    def nets(build: Build) -> nn.Module:
        return nn.ModuleDict({"denoiser": build((DRAFT,), 1), "coder": Coder(build((), 2), build((), 1), sd)})

    def prepare(denoiser: Drafted, noise: Tensor, cond: Cond) -> Cond:
        return denoiser.draft(noise, cond)

    return replace(recipe, form=Drafted, loss=loss, error=error, nets=nets, prepare=prepare)
