"""A transformer over the patches of a picture, each with a learned place (Peebles & Xie 2023, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import Embedding, context, stacked, take
from diffusion_core.nets.layers import Block, Head, patches, picture, places, whole


class PatchTransformer(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    conds gives each condition's width: `vec:*` modulates every layer, `map:*` (that many channels, same size) is stacked on x,
    `tok:*` is attended to in every layer.

    Parameters: 18 width^2 a layer; multiply-adds 12 width^2 + 2 N width a layer and token, N = (size / patch)^2 tokens.
    """

    place: Tensor

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
        kinds = take(conds, "patch transformer", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, whole(size, patch), kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.context = context(width, kinds["tok"])
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("place", places(self.side, width), False)
        self.learned_place = nn.Parameter(torch.zeros(self.side**2, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout, width if kinds["tok"] else None) for _ in range(depth))
        self.head = Head(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        others = self.context(cond, len(x)) if self.context is not None else None
        h = self.enter(patches(stacked(x, cond, self.maps, 1), self.patch)) + self.place + self.learned_place
        for block in self.blocks:
            h = block(h, emb, context=others)
        return picture(self.head(h, emb), self.patch, self.side)
