"""LSGM: a variational autoencoder whose prior is a diffusion model of the latents, trained together.

Vahdat, Kreis & Kautz 2021 (arXiv 2106.05931).
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffusion_core import losses, rng, schedules
from diffusion_core.conditioning import Cond
from diffusion_core.extras.generators import Autoencoder
from diffusion_core.extras.likelihood import integrand
from diffusion_core.extras.parts import LOG_2PI, Coder
from diffusion_core.losses import Weight
from diffusion_core.presets import edm
from diffusion_core.recipe import Build, Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.schedules import Level, expand_like, logsnr_level
from diffusion_core.targets import edm as edm_target
from diffusion_core.targets import to_x0

HIGHEST, LOWEST = 10.0, -10.0  # log-SNR of the latents at both ends


class LatentDenoiser(Autoencoder):
    """A denoiser of latents. It starts as that of the standard normal law, the paper's mixture with weight 0 (section 3.2)."""

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        scaled = x * expand_like(1 / torch.hypot(level.a, level.s), x)
        prediction = self.run("denoiser", scaled, self.c_noise(level), cond or {})
        return to_x0(prediction, x, level, self.target)


def lsgm(sd: float = 0.5) -> Recipe:
    """The negative evidence lower bound in nats a coordinate: reconstruction, entropy of the encoder, and cross-entropy.

    The cross-entropy of the prior is that of a diffusion model in continuous time (theorem 1; here in log-SNR, as in VDM), with
    its gradient into the encoder, and with the control variate of `likelihood.integrand`. Log-SNR is uniform in training, with
    the likelihood's weight for encoder and prior alike. Sampling denoises latents, by any sampler, and decodes them.
    """
    schedule = schedules.logsnr(HIGHEST, LOWEST)
    target = edm_target(1.0)

    def loss(denoiser: LatentDenoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        mean, log_var = denoiser.coder.encode(x0, cond)
        z = mean + torch.exp(log_var / 2) * torch.randn_like(x0)
        entropy = 0.5 * (LOG_2PI + 1 + log_var).flatten(1).mean(1)
        square = (denoiser(level.corrupt(z, noise), level, cond) - z).square().flatten(1).mean(1)
        control = torch.sigmoid(level.logsnr) ** 2
        diffusion = (HIGHEST - LOWEST) * integrand(square.double(), level.logsnr, noise, control).to(z)
        bound: Tensor = denoiser.coder.reconstruction(x0, z, cond) - entropy + diffusion + ends(z)
        return bound

    def error(denoiser: LatentDenoiser, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        mean, _ = denoiser.coder.encode(x0, cond)
        z = denoiser(level.corrupt(mean, noise), level, cond)
        out: Tensor = (denoiser.coder.decode(z, cond) - x0).square().flatten(1).mean(1)
        return out

    def nets(build: Build) -> nn.Module:
        return nn.ModuleDict({"denoiser": build((), 1), "coder": Coder(build((), 2), build((), 1), sd)})

    def finish(denoiser: LatentDenoiser, z: Tensor, cond: Cond) -> Tensor:
        return denoiser.coder.decode(z, cond)

    return replace(
        edm(1.0), density=losses.uniform(schedule), weight=lambda level: torch.ones_like(level.a), sd=1.0, target=target,
        timesteps=lambda n: [*timesteps.uniform(schedule, n - 1), timesteps.clean()] if n > 1 else _single(schedule),
        form=lambda net, target, _, c_noise: LatentDenoiser(net, target, sd, c_noise), loss=loss, error=error, nets=nets,
        finish=finish,
    )  # fmt: skip


def _single(schedule: schedules.NoiseSchedule) -> list[Level]:
    return [timesteps.uniform(schedule, 1)[0], timesteps.clean()]


def ends(z: Tensor) -> Tensor:
    """The terms of the cross-entropy at both ends of the schedule, in nats a coordinate, `[B]`.

    The divergence of x at the noisiest level from the standard normal law, and -log p(z) at the least noisy one.
    """
    a, s = logsnr_level(torch.tensor(LOWEST, dtype=torch.float64))
    prior = 0.5 * (float(s) ** 2 + float(a) ** 2 * z.square().flatten(1).mean(1) - 1 - 2 * math.log(float(s)))
    return prior + 0.5 * (LOG_2PI - HIGHEST + 1)


@torch.no_grad()
def bound(recipe: Recipe, denoiser: LatentDenoiser, x0: Tensor, seed: int = 0, draws: int = 16) -> Tensor:
    """The lower bound on log p(x0) in nats, `[B]`: a mean over `draws` latents, noises and stratified levels."""
    total = torch.zeros(len(x0), dtype=torch.float64)
    ids = torch.arange(len(x0))
    first = rng.uniform((), rng.fold(seed, 1), ids)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        for draw in range(draws):
            level = recipe.density((first + draw) / draws)
            noise = rng.normal(x0.shape[1:], rng.fold(seed, 2, draw), ids).to(x0)
            total += recipe.loss(denoiser, x0, level, noise, recipe.weight, {}).double() / draws
    return -total * x0[0].numel()
