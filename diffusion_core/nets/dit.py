"""DiT with rotary positions: a transformer over a picture's patches whose attention sees relative positions."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import rotary_embedding
from diffusion_core.nets.embedding import Embedding, concat_maps, context_embedding, group_by_kind
from diffusion_core.nets.layers import DiTBlock, FinalLayer, patches_per_side, patchify, unpatchify


class DiT(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Peebles & Xie 2023 (arXiv 2212.09748) with adaLN-Zero. Positions rotate queries and keys (`attention.rotary_embedding`);
    nothing is added to the tokens. `vec:*` modulates every layer, `map:*` is concatenated to the channels of x, `tok:*` is
    attended to in every layer.

    Parameters: 18 width^2 a layer; multiply-adds 12 width^2 + 2 N width a layer and token, N = (size / patch)^2 tokens. Raises
    ValueError if width / heads is not a multiple of 4.
    """

    rotary: Tensor

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
        kinds = group_by_kind(conds, "DiT", ("vec", "map", "tok"))
        self.patch, self.side, self.maps = patch, patches_per_side(size, patch), kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.context = context_embedding(width, kinds["tok"])
        self.patch_embed = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("rotary", rotary_embedding(self.side, width // heads), False)
        context_width = width if kinds["tok"] else None
        self.blocks = nn.ModuleList(DiTBlock(width, heads, dropout, context_width) for _ in range(depth))
        self.final = FinalLayer(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        context = self.context(cond, len(x)) if self.context is not None else None
        h = self.patch_embed(patchify(concat_maps(x, cond, self.maps, 1), self.patch))
        for block in self.blocks:
            h = block(h, emb, rotary=(self.rotary[0], self.rotary[1]), context=context)
        return unpatchify(self.final(h, emb), self.patch, self.side)
