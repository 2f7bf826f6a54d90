"""RIN: most of the work is done on a few latent tokens, which read from the picture's tokens and write to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import CrossAttention
from diffusion_core.nets.embedding import ConditionTokens, stacked, take
from diffusion_core.nets.layers import Norm, Perceptron, PlainBlock, norm, patches, picture, whole, zeroed

PROCESS = 4  # layers on the latents between reading and writing


class RIN(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Jabri et al. 2022 (arXiv 2212.11972): depth blocks that read, process and write. Latents have the width given, the picture's
    tokens half of it; there is one latent for every four of those. Level, `vec:*` and `tok:*` are tokens beside the latents,
    `map:*` is stacked on x.

    `revisit` is latent self-conditioning: the share of a training batch whose latents start from those of a first pass (without
    gradient) instead of from the learned ones; in evaluation all do. The paper carries them over from the step before; asking
    twice needs no state outside.

    Parameters: about (12 PROCESS + 15) width^2 a block; multiply-adds as many a latent, and those of the picture's tokens 3.5
    width^2 a block and token.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int = 3,
        width: int = 512,
        depth: int = 3,
        heads: int = 8,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
        revisit: float = 0.0,
    ) -> None:
        super().__init__()
        kinds = take(conds, "RIN", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, whole(size, patch), kinds["map"]
        self.revisit = revisit
        tokens = self.side**2
        self.conditions = ConditionTokens(width, kinds["vec"], kinds["tok"])
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width // 2)
        self.place = nn.Parameter(torch.randn(tokens, width // 2) * 0.02)
        self.latents = nn.Parameter(torch.randn(max(tokens // 4, 4), width) * 0.02)
        self.again = Remembered(width) if revisit else None
        self.blocks = nn.ModuleList(Exchange(width, heads, dropout) for _ in range(depth))
        self.norm = Norm(width // 2)
        self.leave = zeroed(nn.Linear(width // 2, (out or channels) * patch**2))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        told, mask = self.conditions(c_noise, cond)
        h = self.enter(patches(stacked(x, cond, self.maps, 1), self.patch)) + self.place
        count = len(self.latents)
        if mask is not None:
            mask = torch.cat([mask.new_ones(*mask.shape[:3], count), mask], 3)
        latents = self.latents.expand(len(x), -1, -1)
        if self.again is not None:
            with torch.no_grad():
                _, first = self._pass(h, torch.cat([latents, told.to(latents.dtype)], 1), mask)
            share = self.revisit if self.training else 1.0
            keep = torch.rand(len(x), 1, 1, device=x.device) < share  # seeded by the training loop at every step
            latents = latents + self.again(first[:, :count]) * keep
        h, _ = self._pass(h, torch.cat([latents, told.to(latents.dtype)], 1), mask)
        return picture(self.leave(self.norm(h)), self.patch, self.side)

    def _pass(self, h: Tensor, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            h, latents = block(h, latents, mask)
        return h, latents


class Exchange(nn.Module):
    """Read, process, write: `[B, N, width / 2]` and latents `[B, L, width]` to the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.read = CrossAttention(width, heads, width // 2)
        self.digest = Perceptron(width)
        self.process = nn.ModuleList(PlainBlock(width, heads, dropout) for _ in range(PROCESS))
        self.write = CrossAttention(width // 2, heads, width)
        self.settle = Perceptron(width // 2)

    def forward(self, h: Tensor, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        latents = latents + self.read(norm(latents), norm(h))
        latents = latents + self.digest(norm(latents))
        for block in self.process:
            latents = block(latents, mask)
        h = h + self.write(norm(h), norm(latents), mask)
        return h + self.settle(norm(h)), latents


class Remembered(nn.Module):
    """Latents of a first pass as a change of the next one's start; zero in the beginning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.perceptron = Perceptron(width)
        self.norm = Norm(width)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, latents: Tensor) -> Tensor:
        return self.norm(latents + self.perceptron(norm(latents)))
