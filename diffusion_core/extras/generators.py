"""Models that make an example of noise in one evaluation: a variational autoencoder and a generative adversarial network.

Peers that diffusion is compared with, and starts of truncated diffusion. With `sigma` they make noisy examples, at the level
where TDPM (Zheng et al. 2023, arXiv 2202.09671) starts; ES-DDPM (Lyu et al. 2022, arXiv 2205.12524) adds noise to clean ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, softplus

from diffusion_core.conditioning import LOW, WEIGHT, Cond
from diffusion_core.extras.parts import Adversary, Coder, Discriminator, Parts, Versus, divergence
from diffusion_core.losses import Weight
from diffusion_core.recipe import Build, Recipe
from diffusion_core.sampling.loop import Denoise, Estimate
from diffusion_core.sampling.timesteps import clean
from diffusion_core.schedules import Level
from diffusion_core.targets import X0


def generated(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
    """The only step: what the network made of the noise."""
    return history[-1].x0


class Autoencoder(Parts):
    """The decoder of a VAE as a denoiser: x / s are latents, whatever the level."""

    @property
    def coder(self) -> Coder:
        """Encoder and decoder."""
        coder = self.part("coder")
        assert isinstance(coder, Coder)
        return coder

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        _, s = level.like(x)
        return self.coder.decode(x / s, cond or {})


def vae(sd: float = 1.0, sigma: float = 0.0) -> Recipe:
    """A variational autoencoder, Kingma & Welling 2014 (arXiv 1312.6114), whose latents have the shape of the examples.

    The loss is the negative evidence lower bound in nats a coordinate. A sample is the mean of the decoder for a latent of the
    standard normal law. With `sigma` it models examples with noise of this standard deviation.
    """

    def loss(denoiser: Autoencoder, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        x = x0 + sigma * torch.randn_like(x0) if sigma else x0
        mean, log_var = denoiser.coder.encode(x, cond)
        z = mean + torch.exp(log_var / 2) * noise
        return denoiser.coder.reconstruction(x, z, cond) + divergence(mean, log_var)

    def error(denoiser: Autoencoder, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        mean, _ = denoiser.coder.encode(x0, cond)
        out: Tensor = (denoiser.coder.decode(mean, cond) - x0).square().flatten(1).mean(1)
        return out

    def nets(build: Build) -> nn.Module:
        return nn.ModuleDict({"coder": Coder(build((), 2), build((), 1), sd)})

    return _one_step(sd).replace(form=Autoencoder, loss=loss, error=error, nets=nets)


class Generator(Parts):
    """The generator of a GAN as a denoiser: x / s is noise, whatever the level.

    With the condition LOW it adds to the enlarged picture, as the generator of a super-resolution GAN.
    """

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        _, s = level.like(x)
        made = self.sd * self.run("generator", x / s, 0.0, cond or {})
        return made if cond is None or LOW not in cond else made + cond[LOW].to(made)


def content_error(made: Tensor, x0: Tensor, cond: Cond) -> Tensor:
    """The mean squared error of the averages over 2 x 2 pixels, `[B]`; condition `weight:x` weighs the pixels.

    It is what the smaller picture says of the larger one. The detail within 2 x 2 pixels does not count: it is not determined,
    and an error of pixels would ask for its mean, which is blur.
    """
    difference = made - x0
    if WEIGHT in cond:
        difference = difference * cond[WEIGHT].to(difference)
    return avg_pool2d(difference, 2).square().flatten(1).mean(1)


def gan(sd: float = 1.0, sigma: float = 0.0, gamma: float = 0.1, content: float = 1.0) -> Recipe:
    """A generative adversarial network, Goodfellow et al. 2014 (arXiv 1406.2661), conditional on what the networks get.

    The loss is `parts.Versus` with penalty gamma in units of the data's standard deviation. Generator and discriminator are
    networks of one kind and size. The noise has the shape of the examples. With `sigma` it makes examples with noise of this
    standard deviation. What is measured of an example is the discriminator's loss, by which membership can be told (Hayes et
    al. 2019, arXiv 1705.07663).

    If the networks are given a smaller picture (condition LOW), `content` times the `content_error`, in units of the data's
    standard deviation, is added: a super-resolution GAN in the manner of SRGAN (Ledig et al. 2017, arXiv 1609.04802), whose
    optimum is the law of large pictures given the small one.
    """
    versus = Versus(gamma, 0.05)

    def loss(denoiser: Generator, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        fake = denoiser(noise, level, cond) / sd
        real = (x0 + sigma * torch.randn_like(x0) if sigma else x0) / sd
        game = versus(denoiser, real, fake, 0.0, cond)
        return game + content * content_error(fake, real, cond) if LOW in cond else game

    def error(denoiser: Generator, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Tensor:
        fake = denoiser(noise, Level(torch.zeros_like(level.a), torch.ones_like(level.s)), cond)
        judged = [denoiser.run("discriminator", x / sd, 0.0, cond) for x in (x0, fake)]
        return softplus(judged[1] - judged[0])

    def nets(build: Build) -> nn.Module:
        return nn.ModuleDict({"generator": Adversary(build((), 1)), "discriminator": Discriminator(build((), 1))})

    return _one_step(sd).replace(form=Generator, loss=loss, error=error, nets=nets)


def _one_step(sd: float) -> Recipe:
    """Noise and then a clean example."""
    pure = Level(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    return Recipe(
        target=X0, density=lambda u: Level(torch.zeros_like(u), torch.ones_like(u)),
        weight=lambda level: torch.ones_like(level.a), timesteps=lambda steps: [pure, clean()], step=generated, sd=sd,
    )  # fmt: skip
