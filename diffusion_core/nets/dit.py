"""DiT with rotary places: a transformer over a picture's patches that knows where they lie relative to each other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import turns
from diffusion_core.nets.embedding import Embedding, context, stacked, take
from diffusion_core.nets.layers import Block, Head, patches, picture, whole


class DiT(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Peebles & Xie 2023 (arXiv 2212.09748) with adaLN-Zero; places turn queries and keys (`attention.turns`), nothing is added to
    the tokens. `vec:*` modulates every layer, `map:*` is stacked on x, `tok:*` is attended to in every layer.

    Parameters: 18 width^2 a layer; multiply-adds 12 width^2 + 2 N width a layer and token, N = (size / patch)^2 tokens. Raises
    ValueError if width / heads is no multiple of 4.
    """

    turn: Tensor

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int = 3,
        width: int = 384,
        depth: int = 12,
        heads: int = 6,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = take(conds, "DiT", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, whole(size, patch), kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.context = context(width, kinds["tok"])
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("turn", turns(self.side, width // heads), False)
        other = width if kinds["tok"] else None
        self.blocks = nn.ModuleList(Block(width, heads, dropout, other) for _ in range(depth))
        self.head = Head(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        others = self.context(cond, len(x)) if self.context is not None else None
        h = self.enter(patches(stacked(x, cond, self.maps, 1), self.patch))
        for block in self.blocks:
            h = block(h, emb, turn=(self.turn[0], self.turn[1]), context=others)
        return picture(self.head(h, emb), self.patch, self.side)
