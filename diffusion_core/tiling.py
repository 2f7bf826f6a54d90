"""Denoising large pictures tile by tile, so that the memory of the network does not grow with the picture."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level


def tiled(denoiser: Denoiser, side: int, overlap: int) -> Denoiser:
    """The denoiser for x `[B, C, H, W]` of any size, from its estimates on squares of `side` pixels that overlap.

    At every noise level the estimates are averaged where squares overlap, and all squares see parts of the same noisy
    picture, so that they agree (MultiDiffusion, Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5). The weights of the average fade
    linearly over the middle half of an overlap; the outer quarters are only context. So the result equals that for the whole
    picture where the network looks no further than overlap / 4 pixels. `map:*` is cut like x. Raises ValueError unless
    0 <= overlap <= side / 2.
    """
    if not 0 <= overlap <= side // 2:
        raise ValueError(f"overlap must be between 0 and half a tile ({side // 2}), got {overlap}")

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        height, width = x.shape[-2:]
        if height <= side and width <= side:
            return denoiser(x, level, cond)
        total, weights = torch.zeros_like(x), torch.zeros_like(x[:1, :1])
        for top in starts(height, side, overlap):
            for left in starts(width, side, overlap):
                part = (..., slice(top, top + side), slice(left, left + side))
                own = {key: value[part] if key.startswith("map:") else value for key, value in cond.items()}
                weight = fade(top, height, side, overlap)[:, None] * fade(left, width, side, overlap)
                weight = weight.to(x)
                total[part] += weight * denoiser(x[part], level, own)
                weights[part] += weight
        return total / weights

    return denoise


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles of `side` begin so that neighbours share at least `overlap`; the last one ends at `length`."""
    last = max(length - side, 0)
    return [*range(0, last, side - overlap), last]


def fade(start: int, length: int, side: int, overlap: int) -> Tensor:
    """The weights `[min(side, length)]` of a tile's rows: 1 inside, falling to 0 over the overlaps with its neighbours."""
    count = min(side, length)
    weight = torch.ones(count, dtype=torch.float64)
    if not overlap:
        return weight
    inside = (torch.arange(count, dtype=torch.float64) + 0.5 - overlap / 4) / (overlap / 2)
    if start > 0:
        weight = torch.minimum(weight, inside)
    if start + count < length:
        weight = torch.minimum(weight, inside.flip(0))
    return weight.clamp(min=0)
