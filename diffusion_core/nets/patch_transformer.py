"""A transformer over the patches of a picture, each with a learned position (Peebles & Xie 2023, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import Embedding, concat_maps, context_embedding, group_by_kind
from diffusion_core.nets.layers import (
    DiTBlock,
    FinalLayer,
    patches_per_side,
    patchify,
    sincos_positions,
    unpatchify,
)


class PatchTransformer(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    conds gives each condition's width: `vec:*` modulates every layer, `map:*` (that many channels, same size) is concatenated
    to the channels of x, `tok:*` is attended to in every layer.

    Parameters: 18 width^2 a layer; multiply-adds 12 width^2 + 2 N width a layer and token, N = (size / patch)^2 tokens.
    """

    position: Tensor

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int = 3,
        width: int = 192,
        depth: int = 6,
        heads: int = 4,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "patch transformer", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, patches_per_side(size, patch), kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.context = context_embedding(width, kinds["tok"])
        self.patch_embed = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("position", sincos_positions(self.side, width), False)
        self.learned_position = nn.Parameter(torch.zeros(self.side**2, width))
        context_width = width if kinds["tok"] else None
        self.blocks = nn.ModuleList(DiTBlock(width, heads, dropout, context_width) for _ in range(depth))
        self.final = FinalLayer(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        context = self.context(cond, len(x)) if self.context is not None else None
        tokens = self.patch_embed(patchify(concat_maps(x, cond, self.maps, 1), self.patch))
        h = tokens + self.position + self.learned_position
        for block in self.blocks:
            h = block(h, emb, context=context)
        return unpatchify(self.final(h, emb), self.patch, self.side)
