"""U-ViT: a vision transformer with long skip connections in which patches, noise level and conditions are all tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import ConditionTokens, concat_maps, group_by_kind
from diffusion_core.nets.layers import LayerNorm, ViTBlock, patches_per_side, patchify, unpatchify, zero_init


class UViT(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Bao et al. 2023 (arXiv 2209.12152): depth // 2 blocks, one in the middle, and depth // 2 blocks more. Each of the latter
    starts with a linear layer that merges its input and the output of its counterpart among the former. A 3 x 3 convolution
    ends the network. `vec:*` and `tok:*` are tokens, `map:*` is concatenated to the channels of x.

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
        kinds = group_by_kind(conds, "U-ViT", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, patches_per_side(size, patch), kinds["map"]
        self.conditions = ConditionTokens(width, kinds["vec"], kinds["tok"])
        self.patch_embed = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.position = nn.Parameter(torch.randn(self.side**2, width) * 0.02)
        half = depth // 2
        self.down = nn.ModuleList(ViTBlock(width, heads, dropout) for _ in range(half))
        self.middle = ViTBlock(width, heads, dropout)
        self.skip = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(half))
        self.up = nn.ModuleList(ViTBlock(width, heads, dropout) for _ in range(half))
        self.norm = LayerNorm(width)
        self.out = nn.Linear(width, (out or channels) * patch**2)
        self.final_conv = zero_init(nn.Conv2d(out or channels, out or channels, 3, padding=1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        h = self.patch_embed(patchify(concat_maps(x, cond, self.maps, 1), self.patch)) + self.position
        n = h.shape[1]
        conditions, mask = self.conditions(c_noise, cond)
        if mask is not None:
            mask = pad(mask, (n, 0), value=True)
        h = torch.cat([h, conditions.to(h.dtype)], 1)
        skips = []
        for block in self.down:
            h = block(h, mask)
            skips.append(h)
        h = self.middle(h, mask)
        for skip, block in zip(self.skip, self.up, strict=True):
            h = block(skip(torch.cat([h, skips.pop()], -1)), mask)
        y: Tensor = self.final_conv(unpatchify(self.out(self.norm(h[:, :n])), self.patch, self.side))
        return y
