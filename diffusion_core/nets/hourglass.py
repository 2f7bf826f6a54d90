"""Hourglass: a transformer that attends locally to many fine tokens and globally to few coarse ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import WindowAttention, turns
from diffusion_core.nets.embedding import Embedding, context, stacked, take
from diffusion_core.nets.layers import Block, Head, patches, picture, whole

MIDDLE = 8  # tokens along a side where attention is global
WINDOW = 8  # and along a window elsewhere, at most


class Hourglass(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Crowson et al. 2024 (arXiv 2401.11605). Each level has half the side and twice the width of the one before, down to MIDDLE
    tokens a side or fewer (two levels at least). The middle has `depth` layers of global attention; the finer levels have two
    layers each on the way down and up, in windows that are shifted every other layer. What a coarse level returns is mixed with
    what went into it by a learned share. `vec:*` modulates every layer, `map:*` is stacked on x, `tok:*` is attended to in the
    middle. `width` and `heads` are the finest level's.

    Parameters: 18 w^2 a layer of width w; multiply-adds 12 w^2 + 2 N w a layer and token, with N the tokens of a window (of the
    middle). The cost of the fine levels grows with the number of pixels, not with its square.
    """

    turn: Tensor

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
        kinds = take(conds, "hourglass", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, whole(size, patch), kinds["map"]
        sides = [self.side]
        while sides[-1] > MIDDLE or len(sides) == 1:
            sides.append(whole(sides[-1], 2))
        widths = [width * 2**level for level in range(len(sides))]
        wide = widths[-1]
        self.sides = sides
        self.embedding = Embedding(wide, kinds["vec"])
        self.context = context(wide, kinds["tok"])
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("turn", turns(sides[-1], width // heads), False)

        def local(level: int, shifted: bool) -> Block:
            side, w, h = sides[level], widths[level], heads * 2**level
            attention = WindowAttention(w, h, side, min(WINDOW, side // 2), shifted)
            return Block(w, h, dropout, emb=wide, attention=attention)

        fine = range(len(sides) - 1)
        self.down = nn.ModuleList(Pair(local(i, False), local(i, True)) for i in fine)
        self.up = nn.ModuleList(Pair(local(i, False), local(i, True)) for i in fine)
        self.merge = nn.ModuleList(nn.Linear(4 * widths[i], widths[i + 1]) for i in fine)
        self.split = nn.ModuleList(nn.Linear(widths[i + 1], 4 * widths[i]) for i in fine)
        self.share = nn.Parameter(torch.full((len(fine),), 0.5))
        other = wide if kinds["tok"] else None
        self.middle = nn.ModuleList(Block(wide, heads * 2 ** len(fine), dropout, other) for _ in range(depth))
        self.head = Head(width, (out or channels) * patch**2, emb=wide)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        others = self.context(cond, len(x)) if self.context is not None else None
        h = self.enter(patches(stacked(x, cond, self.maps, 1), self.patch))
        skips = []
        for level, (blocks, merge) in enumerate(zip(self.down, self.merge, strict=True)):
            h = blocks(h, emb)
            skips.append(h)
            h = merge(patches(h.transpose(1, 2).unflatten(2, (self.sides[level], -1)), 2))
        for block in self.middle:
            h = block(h, emb, turn=(self.turn[0], self.turn[1]), context=others)
        for level in reversed(range(len(skips))):
            risen = picture(self.split[level](h), 2, self.sides[level + 1]).flatten(2).transpose(1, 2)
            h = self.up[level](skips[level] + self.share[level] * (risen - skips[level]), emb)
        return picture(self.head(h, emb), self.patch, self.side)


class Pair(nn.Module):
    """A local block and one whose windows are shifted."""

    def __init__(self, plain: Block, shifted: Block) -> None:
        super().__init__()
        self.plain, self.shifted = plain, shifted

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.shifted(self.plain(x, emb), emb)
