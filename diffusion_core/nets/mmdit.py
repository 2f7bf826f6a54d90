"""MM-DiT: picture and context are two streams of tokens with separate weights and joint attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import Rotary, apply_rotary, attend, join_heads, rotary_embedding, split_heads
from diffusion_core.nets.embedding import ContextEmbedding, Embedding, concat_maps, group_by_kind
from diffusion_core.nets.layers import (
    FeedForward,
    FinalLayer,
    modulate,
    patches_per_side,
    patchify,
    unpatchify,
    zero_init,
)


class MMDiT(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Esser et al. 2024 (arXiv 2403.03206), section 4. `tok:*` conditions are the second stream, so at least one is needed.
    `vec:*` modulates both streams, `map:*` is concatenated to the channels of x. Picture tokens have rotary positions; context
    tokens have none, so their order does not matter. Queries and keys are normalised, which keeps bfloat16 stable.

    Parameters: 36 width^2 a layer, 18 in each stream; multiply-adds 12 width^2 + 2 (N + M) width a layer and token, with N
    tokens of the picture and M of the context. Raises ValueError without a `tok:*` condition.
    """

    rotary: Tensor

    def __init__(
        self,
        size: int,
        patch: int,
        channels: int = 3,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "MM-DiT", ("vec", "map", "tok"))
        if not kinds["tok"]:
            raise ValueError("the MM-DiT needs a tok:* condition for its second stream")
        self.patch, self.side, self.maps = patch, patches_per_side(size, patch), kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.context = ContextEmbedding(width, kinds["tok"])
        self.patch_embed = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("rotary", rotary_embedding(self.side, width // heads), False)
        self.blocks = nn.ModuleList(JointBlock(width, heads, dropout, last=i == depth - 1) for i in range(depth))
        self.final = FinalLayer(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        context, mask = self.context(cond, len(x))
        if mask is not None:
            mask = pad(mask, (self.side**2, 0), value=True)  # the picture's own tokens come first
        h = self.patch_embed(patchify(concat_maps(x, cond, self.maps, 1), self.patch))
        for block in self.blocks:
            h, context = block(h, context, emb, (self.rotary[0], self.rotary[1]), mask)
        return unpatchify(self.final(h, emb), self.patch, self.side)


class Projections(NamedTuple):
    """What joint attention needs of a stream, `[B, heads, n, D]` each, and the modulation left for `Stream.update`."""

    q: Tensor
    k: Tensor
    v: Tensor
    modulation: tuple[Tensor, ...]


class Stream(nn.Module):
    """One stream's weights in a joint block. A stream that ends there (`last`) only gives keys and values."""

    def __init__(self, width: int, heads: int, dropout: float, last: bool) -> None:
        super().__init__()
        self.heads, self.last = heads, last
        self.modulation = zero_init(nn.Linear(width, (2 if last else 6) * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        if not last:
            self.out = nn.Linear(width, width)
            self.feed_forward = FeedForward(width)
            self.dropout = nn.Dropout(dropout)

    def project(self, x: Tensor, emb: Tensor) -> Projections:
        """Normalised queries and keys, and values, of tokens x `[B, n, width]`."""
        shift, scale, *rest = self.modulation(emb)[:, None].chunk(2 if self.last else 6, -1)
        q, k, v = split_heads(self.qkv(modulate(x, shift, scale)), 3, self.heads)
        q = rms_norm(q, q.shape[-1:], self.query_scale.to(q.dtype))
        return Projections(q, rms_norm(k, k.shape[-1:], self.key_scale.to(k.dtype)), v, tuple(rest))

    def update(self, x: Tensor, attended: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
        """The tokens after attention, whose result is `attended` `[B, n, width]`, and feed-forward layers."""
        if self.last:
            return x
        gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self.dropout(self.out(attended))
        y: Tensor = x + gate2 * self.dropout(self.feed_forward(modulate(x, shift2, scale2)))
        return y


class JointBlock(nn.Module):
    """Joint attention of both streams; the context's stream ends in the last block."""

    def __init__(self, width: int, heads: int, dropout: float, last: bool) -> None:
        super().__init__()
        self.picture = Stream(width, heads, dropout, last=False)
        self.context = Stream(width, heads, dropout, last=last)
        if last:  # the context's queries are not used
            self.context.query_scale.requires_grad_(False)

    def forward(
        self, x: Tensor, context: Tensor, emb: Tensor, rotary: Rotary, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from_picture, from_context = self.picture.project(x, emb), self.context.project(context, emb)
        q, k = apply_rotary(from_picture.q, rotary), apply_rotary(from_picture.k, rotary)
        queries = q if self.context.last else torch.cat([q, from_context.q], 2)
        keys, values = torch.cat([k, from_context.k], 2), torch.cat([from_picture.v, from_context.v], 2)
        attended = join_heads(attend(queries, keys, values, mask))
        n = x.shape[1]
        new_x = self.picture.update(x, attended[:, :n], from_picture.modulation)
        return new_x, self.context.update(context, attended[:, n:], from_context.modulation)
