"""MM-DiT: picture and context are two streams of tokens with weights of their own that attend to each other jointly."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import Turn, attend, join_heads, rotated, split_heads, turns
from diffusion_core.nets.embedding import Context, Embedding, stacked, take
from diffusion_core.nets.layers import Head, Perceptron, modulated, patches, picture, whole, zeroed


class MMDiT(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Esser et al. 2024 (arXiv 2403.03206), section 4. `tok:*` are the second stream, at least one is needed; `vec:*` modulates
    both, `map:*` is stacked on x. Picture tokens have rotary places, context tokens none: their order does not matter. Queries
    and keys are normalised, which keeps bfloat16 stable.

    Parameters: 36 width^2 a layer, two streams of 18; multiply-adds 12 width^2 + 2 (N + M) width a layer and token, with N
    tokens of the picture and M of the context.
    """

    turn: Tensor

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
        kinds = take(conds, "MM-DiT", ("vec", "map", "tok"))
        if not kinds["tok"]:
            raise ValueError("the MM-DiT needs a tok:* condition for its second stream")
        self.patch, self.side, self.maps = patch, whole(size, patch), kinds["map"]
        self.embedding = Embedding(width, kinds["vec"])
        self.context = Context(width, kinds["tok"])
        self.enter = nn.Linear((channels + sum(self.maps.values())) * patch**2, width)
        self.register_buffer("turn", turns(self.side, width // heads), False)
        self.blocks = nn.ModuleList(JointBlock(width, heads, dropout, last=i == depth - 1) for i in range(depth))
        self.head = Head(width, (out or channels) * patch**2)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        other, mask = self.context(cond, len(x))
        if mask is not None:
            mask = pad(mask, (self.side**2, 0), value=True)  # the picture's own tokens come first
        h = self.enter(patches(stacked(x, cond, self.maps, 1), self.patch))
        for block in self.blocks:
            h, other = block(h, other, emb, (self.turn[0], self.turn[1]), mask)
        return picture(self.head(h, emb), self.patch, self.side)


class Stream(nn.Module):
    """One stream's share of a joint block; a stream that ends here (`last`) is only listened to."""

    def __init__(self, width: int, heads: int, dropout: float, last: bool) -> None:
        super().__init__()
        self.heads, self.last = heads, last
        self.modulate = zeroed(nn.Linear(width, (2 if last else 6) * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))
        if not last:
            self.project = nn.Linear(width, width)
            self.perceptron = Perceptron(width)
            self.drop = nn.Dropout(dropout)

    def opened(self, x: Tensor, emb: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Queries, keys, values, and what `closed` needs of the modulation."""
        shift, scale, *rest = self.modulate(emb)[:, None].chunk(2 if self.last else 6, -1)
        q, k, v = split_heads(self.qkv(modulated(x, shift, scale)), 3, self.heads)
        q = rms_norm(q, q.shape[-1:], self.query_scale.to(q.dtype))
        return (q, rms_norm(k, k.shape[-1:], self.key_scale.to(k.dtype)), v), tuple(rest)

    def closed(self, x: Tensor, heard: Tensor, rest: tuple[Tensor, ...]) -> Tensor:
        """The stream after attention `[B, n, width]` and perceptron."""
        if self.last:
            return x
        gate1, shift2, scale2, gate2 = rest
        x = x + gate1 * self.drop(self.project(heard))
        return x + gate2 * self.drop(self.perceptron(modulated(x, shift2, scale2)))


class JointBlock(nn.Module):
    """Both streams through joint attention; in the last block the context's stream ends."""

    def __init__(self, width: int, heads: int, dropout: float, last: bool) -> None:
        super().__init__()
        self.own = Stream(width, heads, dropout, last=False)
        self.other = Stream(width, heads, dropout, last=last)
        if last:  # nobody asks for what the context would hear
            self.other.query_scale.requires_grad_(False)

    def forward(self, x: Tensor, other: Tensor, emb: Tensor, turn: Turn, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        (q, k, v), rest = self.own.opened(x, emb)
        (q2, k2, v2), rest2 = self.other.opened(other, emb)
        q, k = rotated(q, turn), rotated(k, turn)
        asked = q if self.other.last else torch.cat([q, q2], 2)
        heard = join_heads(attend(asked, torch.cat([k, k2], 2), torch.cat([v, v2], 2), mask))
        n = x.shape[1]
        return self.own.closed(x, heard[:, :n], rest), self.other.closed(other, heard[:, n:], rest2)
