"""RIN: most of the computation happens on a few latent tokens, which read from the picture's tokens and write to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import CrossAttention
from diffusion_core.nets.embedding import ConditionTokens, concat_maps, group_by_kind
from diffusion_core.nets.layers import (
    FeedForward,
    LayerNorm,
    ViTBlock,
    layer_norm,
    patches_per_side,
    patchify,
    unpatchify,
    zero_init,
)

PROCESS_LAYERS = 4  # layers on the latents between reading and writing


class RIN(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Jabri et al. 2022 (arXiv 2212.11972): `depth` blocks that read, process and write. Latents have width `width`, the picture's
    tokens half of it; there is one latent for every four of those. Level, `vec:*` and `tok:*` are tokens beside the latents,
    `map:*` is concatenated to the channels of x.

    `latent_self_conditioning` is the probability with which a training example's latents start from those of a first pass
    (without gradient) instead of from the learned ones. If it is positive, every example's do in evaluation. The paper carries
    the latents over from the sampling step before; a second pass needs no state outside the network.

    Parameters: about (12 PROCESS_LAYERS + 15) width^2 a block; multiply-adds as many a latent, and 3.5 width^2 a block and
    token of the picture.
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
        latent_self_conditioning: float = 0.0,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "RIN", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, patches_per_side(size, patch), kinds["map"]
        self.latent_self_conditioning = latent_self_conditioning
        tokens = self.side**2
        self.conditions = ConditionTokens(width, kinds["vec"], kinds["tok"])
        self.patch_embed = nn.Linear((channels + sum(self.maps.values())) * patch**2, width // 2)
        self.position = nn.Parameter(torch.randn(tokens, width // 2) * 0.02)
        self.latents = nn.Parameter(torch.randn(max(tokens // 4, 4), width) * 0.02)
        self.from_first_pass = LatentUpdate(width) if latent_self_conditioning else None
        self.blocks = nn.ModuleList(RINBlock(width, heads, dropout) for _ in range(depth))
        self.norm = LayerNorm(width // 2)
        self.out = zero_init(nn.Linear(width // 2, (out or channels) * patch**2))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        conditions, mask = self.conditions(c_noise, cond)
        h = self.patch_embed(patchify(concat_maps(x, cond, self.maps, 1), self.patch)) + self.position
        count = len(self.latents)
        if mask is not None:
            mask = torch.cat([mask.new_ones(*mask.shape[:3], count), mask], 3)
        latents = self.latents.expand(len(x), -1, -1)
        if self.from_first_pass is not None:
            with torch.no_grad():
                _, first = self._run_blocks(h, torch.cat([latents, conditions.to(latents.dtype)], 1), mask)
            change = self.from_first_pass(first[:, :count])
            if self.training:  # the training loop seeds torch at every step
                change = change * (torch.rand(len(x), 1, 1, device=x.device) < self.latent_self_conditioning)
            latents = latents + change
        h, _ = self._run_blocks(h, torch.cat([latents, conditions.to(latents.dtype)], 1), mask)
        return unpatchify(self.out(self.norm(h)), self.patch, self.side)

    def _run_blocks(self, h: Tensor, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            h, latents = block(h, latents, mask)
        return h, latents


class RINBlock(nn.Module):
    """Read, process, write: picture tokens `[B, N, width / 2]` and latents `[B, L, width]` to the same."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.read = CrossAttention(width, heads, width // 2)
        self.read_feed_forward = FeedForward(width)
        self.process = nn.ModuleList(ViTBlock(width, heads, dropout) for _ in range(PROCESS_LAYERS))
        self.write = CrossAttention(width // 2, heads, width)
        self.write_feed_forward = FeedForward(width // 2)

    def forward(self, h: Tensor, latents: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        latents = latents + self.read(layer_norm(latents), layer_norm(h))
        latents = latents + self.read_feed_forward(layer_norm(latents))
        for block in self.process:
            latents = block(latents, mask)
        h = h + self.write(layer_norm(h), layer_norm(latents), mask)
        return h + self.write_feed_forward(layer_norm(h)), latents


class LatentUpdate(nn.Module):
    """The latents of a first pass, turned into a change of those that the second pass starts from; starts as zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feed_forward = FeedForward(width)
        self.norm = LayerNorm(width)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.norm.bias)

    def forward(self, latents: Tensor) -> Tensor:
        y: Tensor = self.norm(latents + self.feed_forward(layer_norm(latents)))
        return y
