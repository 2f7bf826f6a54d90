"""Hourglass: a transformer with local attention among many fine tokens and global attention among few coarse ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import WindowAttention, rotary_embedding
from diffusion_core.nets.embedding import Embedding, concat_maps, context_embedding, group_by_kind
from diffusion_core.nets.layers import DiTBlock, FinalLayer, patches_per_side, patchify, unpatchify

MAX_MIDDLE_SIDE = 8  # tokens along a side, at most, where attention is global
MAX_WINDOW = 8  # tokens along a side of a window, at most


class Hourglass(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Crowson et al. 2024 (arXiv 2401.11605). Each level has half the side and twice the width of the one before, down to
    MAX_MIDDLE_SIDE tokens along a side or fewer (two levels at least). The middle has `depth` layers of global attention. Each
    finer level has two layers on the way down and two on the way up, with attention in windows that are shifted in every
    second layer. A level's output is a learned mixture of its input and of what the coarser level returns. `vec:*` modulates
    every layer, `map:*` is concatenated to the channels of x, `tok:*` is attended to in the middle. `width` and `heads` are
    those of the finest level.

    Parameters: 18 w^2 a layer of width w; multiply-adds 12 w^2 + 2 N w a layer and token, with N the tokens of a window (of the
    middle). The cost of the fine levels grows with the number of pixels, not with its square.
    """

    rotary: Tensor

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int = 3,
        width: int = 128,
        depth: int = 8,
        heads: int = 2,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "hourglass", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, patches_per_side(size, patch), kinds["map"]
        sides = [self.side]
        while sides[-1] > MAX_MIDDLE_SIDE or len(sides) == 1:
            sides.append(patches_per_side(sides[-1], 2))
        widths = [width * 2**level for level in range(len(sides))]
        middle_width = widths[-1]
        self.sides = sides
        self.embedding = Embedding(middle_width, kinds["vec"])
        self.context = context_embedding(middle_width, kinds["tok"])
        self.patch_embed = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("rotary", rotary_embedding(sides[-1], width // heads), False)

        def local_block(level: int, shifted: bool) -> DiTBlock:
            side, level_width, level_heads = sides[level], widths[level], heads * 2**level
            attention = WindowAttention(level_width, level_heads, side, min(MAX_WINDOW, side // 2), shifted)
            return DiTBlock(level_width, level_heads, dropout, emb=middle_width, attention=attention)

        fine = range(len(sides) - 1)
        self.down = nn.ModuleList(LocalPair(local_block(i, False), local_block(i, True)) for i in fine)
        self.up = nn.ModuleList(LocalPair(local_block(i, False), local_block(i, True)) for i in fine)
        self.merge = nn.ModuleList(nn.Linear(4 * widths[i], widths[i + 1]) for i in fine)
        self.split = nn.ModuleList(nn.Linear(widths[i + 1], 4 * widths[i]) for i in fine)
        self.coarse_share = nn.Parameter(torch.full((len(fine),), 0.5))
        context_width = middle_width if kinds["tok"] else None
        middle_heads = heads * 2 ** len(fine)
        self.middle = nn.ModuleList(DiTBlock(middle_width, middle_heads, dropout, context_width) for _ in range(depth))
        self.final = FinalLayer(width, (out or channels) * patch**2, emb=middle_width)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        context = self.context(cond, len(x)) if self.context is not None else None
        h = self.patch_embed(patchify(concat_maps(x, cond, self.maps, 1), self.patch))
        skips = []
        for level, (blocks, merge) in enumerate(zip(self.down, self.merge, strict=True)):
            h = blocks(h, emb)
            skips.append(h)
            h = merge(patchify(torch.unflatten(h.transpose(1, 2), 2, (self.sides[level], -1)), 2))
        for block in self.middle:
            h = block(h, emb, rotary=(self.rotary[0], self.rotary[1]), context=context)
        for level in reversed(range(len(skips))):
            coarse = unpatchify(self.split[level](h), 2, self.sides[level + 1]).flatten(2).transpose(1, 2)
            h = self.up[level](skips[level] + self.coarse_share[level] * (coarse - skips[level]), emb)
        return unpatchify(self.final(h, emb), self.patch, self.side)


class LocalPair(nn.Module):
    """A block of window attention and one whose windows are shifted."""

    def __init__(self, plain: DiTBlock, shifted: DiTBlock) -> None:
        super().__init__()
        self.plain, self.shifted = plain, shifted

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y: Tensor = self.shifted(self.plain(x, emb), emb)
        return y
