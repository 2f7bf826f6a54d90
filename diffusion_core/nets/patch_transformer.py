"""A transformer over the patches of a picture (DiT, Peebles & Xie 2023, arXiv 2212.09748)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffusion_core.cond import Cond, kept
from diffusion_core.nets.layers import Block, Embedding, Fourier, Head


class PatchTransformer(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    conds gives each condition's width: `vec:*` modulates every layer, `map:*` (that many channels, same size) is stacked on x,
    `tok:*` (one at most) is attended to in every layer.
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
        conds = conds or {}
        self.patch = patch
        self.maps = {key: wide for key, wide in conds.items() if key.startswith("map:")}
        self.tokens = {key: wide for key, wide in conds.items() if key.startswith("tok:")}
        context = next(iter(self.tokens.values()), None)
        self.embedding = Embedding(width, conds)
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("place", positions(size // patch, width), False)
        self.learned_place = nn.Parameter(torch.zeros((size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, dropout, context) for _ in range(depth))
        self.head = Head(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        side = x.shape[-1] // self.patch
        stacked = torch.cat([x, *(map_or_zeros(cond, key, wide, x) for key, wide in self.maps.items())], 1)
        tokens = pixel_unshuffle(stacked, self.patch).flatten(2).transpose(1, 2)
        h = self.enter(tokens) + self.place + self.learned_place
        context = self._context(cond, len(x))
        for block in self.blocks:
            h = block(h, emb, context=context)
        out = self.head(h, emb).transpose(1, 2).unflatten(2, (side, side))
        return pixel_shuffle(out, self.patch)

    def _context(self, cond: Cond, batch: int) -> tuple[Tensor, Tensor] | None:
        for key, wide in self.tokens.items():
            if key not in cond:
                none = self.learned_place.new_zeros(batch, 0, wide)
                return none, none.new_zeros(batch, dtype=torch.bool)
            keep = kept(cond, key)
            return cond[key], cond[key].new_ones(batch, dtype=torch.bool) if keep is None else keep
        return None


def map_or_zeros(cond: Cond, key: str, channels: int, x: Tensor) -> Tensor:
    """The map condition `[B, channels, H, W]`, zeros in the rows it is withheld from."""
    if key not in cond:
        return x.new_zeros(len(x), channels, *x.shape[2:])
    keep = kept(cond, key)
    return cond[key] if keep is None else cond[key] * keep[:, None, None, None]


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `[side * side, width]`."""
    half = Fourier(width // 2, lowest=0.5, highest=side)
    line = half(torch.linspace(-1, 1, side))
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)
