"""A reconstruction loss with a patch discriminator, which makes textures sharp: VAE + GAN and VQGAN.

The discriminator is a part of the loss: the training loop stores and updates its weights like all others. One backward
pass serves both sides: the discriminator judges the reconstruction twice, once with its weights held fixed, for the
autoencoder, and once with the reconstruction held fixed, for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import relu

from diffusion_core.conditioning import WEIGHT, Cond
from diffusion_core.denoiser import Preconditioned
from diffusion_core.nets.layers import zero_init
from diffusion_core.schedules import Level
from diffusion_core.training import parallel, reconstruction

Distance = Callable[[Tensor, Tensor], Tensor]  # pictures [B, C, s, s] twice -> [B]
DELTA, LARGEST = 1e-6, 1e4  # of the adaptive weight


class PatchDiscriminator(nn.Module):
    """Pictures `[B, channels, s, s]` to a verdict on each patch, `[B, 1, s / 2^depth, s / 2^depth]`: high for real ones.

    Strided convolutions as in pix2pix (Isola et al. 2017, arXiv 1611.07004), with group normalisation, which needs no running
    statistics. The verdicts start as zero. `rate_scale` and `clipped_alone` tell the training loop that its learning rate is
    this multiple of AdamW's and that its gradient is clipped by itself.
    """

    clipped_alone = True

    def __init__(self, channels: int = 3, width: int = 32, depth: int = 3, rate_scale: float = 1.0) -> None:
        super().__init__()
        self.rate_scale = rate_scale
        layers: list[nn.Module] = []
        inp = channels
        for level in range(depth):
            out = width * 2**level
            layers.append(nn.Conv2d(inp, out, 4, stride=2, padding=1))
            if level:
                layers.append(nn.GroupNorm(max(1, out // 16), out))
            layers.append(nn.LeakyReLU(0.2))
            inp = out
        layers.append(zero_init(nn.Conv2d(inp, 1, 3, padding=1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


class AdversarialLoss(nn.Module):
    """`reconstruction.loss` and, where they are given, a perceptual distance and a discriminator: `[B]`.

    From `from_images` images on, the discriminator learns by the hinge loss and the autoencoder by minus its verdict, times
    `weight` and the adaptive weight of `adaptive_weight`. Esser et al. 2021 (arXiv 2012.09841), section 3.1. The value of the
    loss stays that of the reconstruction: the adversarial terms contribute gradients only, so that the curve has no jump. With
    micro-batches the adaptive weight is that of each of them.
    """

    def __init__(
        self,
        discriminator: PatchDiscriminator | None = None,
        from_images: int = 0,
        weight: float = 0.8,
        perceptual: Distance | None = None,
    ) -> None:
        super().__init__()
        self.discriminator, self.from_images, self.weight = discriminator, from_images, weight
        self.perceptual = (perceptual,)  # in a tuple, so that its weights are not trained and not in checkpoints
        self.on = False

    def begin_step(self, nimg: int) -> None:
        """Whether the discriminator takes part in the step after `nimg` images."""
        self.on = self.discriminator is not None and nimg >= self.from_images

    def end_step(self) -> None:
        """Nothing is collected."""

    def forward(
        self, denoiser: Preconditioned, x0: Tensor, level: Level, noise: Tensor, weight: object, cond: Cond
    ) -> Tensor:
        result = reconstruction.reconstructed(denoiser, x0, level, noise, cond)
        again, counts = result.x.float(), cond.get(WEIGHT)
        error = reconstruction.error(again, x0, counts)
        if counts is not None:  # what has no weight must not be judged either
            again = torch.where(counts > 0, again, x0)
        (perceptual,) = self.perceptual
        if perceptual is not None:
            error = error + perceptual(again, x0)
        total = error + result.penalty
        if not self.on or self.discriminator is None:
            return total
        fixed = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        verdict = -functional_call(self.discriminator, fixed, (again,)).float().flatten(1).mean(1)
        last = reconstruction.autoencoder(denoiser).last_layer
        share = self.weight * adaptive_weight(error.mean(), verdict.mean(), last)
        real, fake = (self.discriminator(x).float().flatten(1) for x in (x0, again.detach()))
        own = (relu(1 - real).mean(1) + relu(1 + fake).mean(1)) / 2
        return total + share * _gradient_only(verdict) + _gradient_only(own)


def adaptive_weight(error: Tensor, verdict: Tensor, last: Tensor) -> Tensor:
    """|gradient of the error| / |gradient of the verdict| with respect to the last layer, over all ranks' examples: `[]`.

    Esser et al. 2021 (arXiv 2012.09841), eq. 7. With it both terms move the autoencoder alike, whatever their scales.
    """
    norms = []
    for value in (error, verdict):
        (gradient,) = torch.autograd.grad(value, last, retain_graph=True)
        norms.append(parallel.all_reduce_sum(gradient.detach().clone()).norm())
    error_norm, verdict_norm = norms
    return cast(Tensor, (error_norm / (verdict_norm + DELTA)).clamp(max=LARGEST))


def _gradient_only(value: Tensor) -> Tensor:
    """Zero with the gradient of `value`; NaN if it is."""
    return value - value.detach()
