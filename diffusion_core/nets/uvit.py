"""U-ViT: patches, level and conditions are all tokens of one vision transformer with long skips."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import ConditionTokens, stacked, take
from diffusion_core.nets.layers import Norm, PlainBlock, patches, picture, whole, zeroed


class UViT(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Bao et al. 2023 (arXiv 2209.12152): depth // 2 blocks, one in the middle, and depth // 2 that each begin with the tokens of
    their counterpart beside their own, made one by a linear layer; a 3 x 3 convolution at the end. `vec:*` and `tok:*` are
    tokens, `map:*` is stacked on x.

    Parameters: 12 width^2 a layer, 2 width^2 more with a skip; multiply-adds as many a token, and 2 N width for attention.
    """

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int = 3,
        width: int = 512,
        depth: int = 13,
        heads: int = 8,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = take(conds, "U-ViT", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, whole(size, patch), kinds["map"]
        self.conditions = ConditionTokens(width, kinds["vec"], kinds["tok"])
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.place = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        half = depth // 2
        self.down = nn.ModuleList(PlainBlock(width, heads, dropout) for _ in range(half))
        self.middle = PlainBlock(width, heads, dropout)
        self.merge = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(half))
        self.up = nn.ModuleList(PlainBlock(width, heads, dropout) for _ in range(half))
        self.norm = Norm(width)
        self.leave = nn.Linear(width, (out or channels) * patch**2)
        self.smooth = zeroed(nn.Conv2d(out or channels, out or channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        h = self.enter(patches(stacked(x, cond, self.maps, 1), self.patch)) + self.place
        n = h.shape[1]
        told, mask = self.conditions(c_noise, cond)
        if mask is not None:
            mask = pad(mask, (n, 0), value=True)
        h = torch.cat([h, told.to(h.dtype)], 1)
        skips = []
        for block in self.down:
            h = block(h, mask)
            skips.append(h)
        h = self.middle(h, mask)
        for merge, block in zip(self.merge, self.up, strict=True):
            h = block(merge(torch.cat([h, skips.pop()], -1)), mask)
        return self.smooth(picture(self.leave(self.norm(h[:, :n])), self.patch, self.side))
