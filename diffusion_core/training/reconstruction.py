"""Training an autoencoder in the loop that trains denoisers: a recipe whose loss is the error of the reconstruction.

The recipe's noise level is the standard deviation of the noise on the latents.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from diffusion_core.conditioning import WEIGHT, Cond, kept
from diffusion_core.denoiser import Preconditioned
from diffusion_core.nets.autoencoder import Autoencoder, Reconstruction
from diffusion_core.presets import edm
from diffusion_core.recipe import Recipe
from diffusion_core.schedules import Level, sigma_level

SCALES = 3  # of the gradients: full, half, quarter resolution


def recipe(noise: float, loss: Callable[..., Tensor] | None = None) -> Recipe:
    """The recipe of an autoencoder with noise of standard deviation 0 ... `noise` on its latents.

    Its denoiser only holds the autoencoder, as `net`. The default loss is `reconstruction_loss`.
    """
    return edm().replace(density=lambda u: sigma_level(noise * u), loss=loss or reconstruction_loss)


def reconstruction_loss(
    denoiser: Preconditioned, x0: Tensor, level: Level, noise: Tensor, weight: object, cond: Cond
) -> Tensor:
    """Error of the reconstruction of pictures `[B, C, s, s]`, plus the penalty on the latents: `[B]`."""
    result = reconstructed(denoiser, x0, level, noise, cond)
    return error(result.x.float(), x0, cond.get(WEIGHT)) + result.penalty


def reconstructed(denoiser: Preconditioned, x0: Tensor, level: Level, noise: Tensor, cond: Cond) -> Reconstruction:
    """The pictures `[B, C, s, s]` from their noisy latents.

    The noise is taken from `noise`, which is as large as the pictures. Maps of conditions have the pictures' resolution.
    """
    net = autoencoder(denoiser)
    side = x0.shape[-1] // net.factor
    count = net.latents * side**2
    latent_noise = noise.flatten(1)[:, :count].reshape(len(x0), net.latents, side, side)
    maps = None
    if net.condition is not None and net.condition in cond:
        maps = kept(net.condition, {**cond, net.condition: pixel_unshuffle(cond[net.condition], net.factor)})
    result: Reconstruction = net(x0, latent_noise, level.s.to(x0).expand(len(x0)), maps)
    return result


def autoencoder(denoiser: Preconditioned) -> Autoencoder:
    """The autoencoder that the recipe's denoiser holds."""
    assert isinstance(denoiser.net, Autoencoder)
    return denoiser.net


def error(x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Weighted mean absolute error, plus that of the differences of neighbouring pixels at SCALES resolutions: `[B]`.

    The differences keep edges sharp where no perceptual loss is at hand. Pixels of weight 0 have no influence.
    """
    difference = x - target
    if weight is not None:
        difference = torch.where(weight > 0, difference, 0)
    absolute = difference.abs()
    total = (absolute if weight is None else weight * absolute).flatten(1).mean(1)
    for scale in range(SCALES):
        if scale:
            difference = avg_pool2d(difference, 2)
        for dim in (-1, -2):
            total = total + difference.diff(dim=dim).abs().flatten(1).mean(1)
    return total


@torch.no_grad()
def psnr(x: Tensor, target: Tensor, real: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in decibels of pictures in -1 ... 1, `[B]`; over pixels where `real` `[B, 1, s, s]` is 1."""
    error = (x.clamp(-1, 1) - target).square()
    if real is not None:
        error = error * real / real.mean((1, 2, 3), keepdim=True).clamp(min=1e-12)
    return 10 * torch.log10(4 / error.flatten(1).mean(1).clamp(min=1e-12))
