"""Attention with everything that the networks add to it: biases, masks, rotary places, windows, context.

Queries, keys and values are `[B, heads, N, D]` with D = width / heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

SMALL = 512**2  # scores of a head that may lie in memory
Turn = tuple[Tensor, Tensor]  # cosines and sines `[N, D / 2]` by which the pairs of queries and keys are turned


class SelfAttention(nn.Module):
    """Attention among tokens `[B, N, width]`.

    `turn` rotates queries and keys by their places; `bias` broadcasts against `[B, heads, N, N]`: added to the scores if it is
    a number, a token that may be listened to if it is boolean.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        return self.project(join_heads(attend(q, k, v, bias)))


class WindowAttention(SelfAttention):
    """Attention within windows of window x window tokens of a square `[B, side * side, width]`, with rotary places.

    With `shifted`, the windows lie half a window further, so that in a stack of both kinds every token hears of its
    neighbours; windows do not reach around the edge. Liu et al. 2021 (arXiv 2103.14030), section 3.2.
    """

    turn: Tensor
    mask: Tensor

    def __init__(self, width: int, heads: int, side: int, window: int, shifted: bool) -> None:
        super().__init__(width, heads)
        if side % window:
            raise ValueError(f"a side of {side} tokens does not divide into windows of {window}")
        self.side, self.window, self.shift = side, window, window // 2 if shifted else 0
        self.register_buffer("turn", turns(window, width // heads), False)
        # After the shift the last window of a line holds tokens of both edges: they must not see each other.
        line = (torch.arange(side) >= side - self.shift).int()
        region = self._windows((2 * line[:, None] + line[None]).reshape(1, side * side, 1))[..., 0]
        self.register_buffer("mask", (region[:, :, None] == region[:, None])[:, None], False)  # [windows, 1, n, n]

    def forward(self, x: Tensor, bias: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        if self.shift:
            x = self._rolled(x, -self.shift)
            bias = self.mask.repeat(len(x), 1, 1, 1)
        y = super().forward(self._windows(x), bias, (self.turn[0], self.turn[1]))
        y = self._joined(y)
        return self._rolled(y, self.shift) if self.shift else y

    def _rolled(self, x: Tensor, by: int) -> Tensor:
        return x.unflatten(1, (self.side, self.side)).roll((by, by), (1, 2)).flatten(1, 2)

    def _windows(self, x: Tensor) -> Tensor:
        """`[B, side * side, C]` to `[B * windows, window * window, C]`."""
        count = self.side // self.window
        x = x.unflatten(1, (count, self.window, count, self.window))
        return x.transpose(2, 3).reshape(-1, self.window**2, x.shape[-1])

    def _joined(self, x: Tensor) -> Tensor:
        count = self.side // self.window
        x = x.unflatten(0, (-1, count, count)).unflatten(3, (self.window, self.window))
        return x.transpose(2, 3).reshape(-1, self.side**2, x.shape[-1])


class CrossAttention(nn.Module):
    """Attention from tokens `[B, N, width]` to others `[B, M, other]`, of which `mask` `[B, 1, 1, M]` says which count."""

    def __init__(self, width: int, heads: int, other: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(other, 2 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None = None) -> Tensor:
        (q,) = split_heads(self.query(x), 1, self.heads)
        k, v = split_heads(self.key_value(other), 2, self.heads)
        return self.project(join_heads(attend(q, k, v, mask)))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, `[B, heads, N, D]`; a boolean bias says who may be listened to."""
    # Torch's fused backward pass in bfloat16 on CPUs took four times as long as the products written out.
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] * k.shape[2] > SMALL:
        return scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias.to(scores.dtype)
    return scores.softmax(-1) @ v


def split_heads(x: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[B, N, parts * width]` as `parts` tensors `[B, heads, N, width / heads]`."""
    return tuple(t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in x.chunk(parts, -1))


def join_heads(x: Tensor) -> Tensor:
    """`[B, heads, N, D]` to `[B, N, heads * D]`."""
    return x.transpose(1, 2).flatten(2)


def turns(side: int, head_width: int, base: float = 100.0) -> Tensor:
    """Cosines and sines, `[2, side * side, head_width / 2]`, of the angles of a square's places; head_width divides by 4.

    Rotary embedding (Su et al. 2021, arXiv 2104.09864) in two dimensions: half of a head's pairs turn with the row, half with
    the column (axial, Heo et al. 2024, arXiv 2403.13298). Scores then depend on the difference of two places alone.
    """
    if head_width % 4:
        raise ValueError(f"rotary places need a head width that is a multiple of 4, got {head_width}")
    pairs = head_width // 4
    angles = torch.arange(side)[:, None] * base ** (-torch.arange(pairs) / pairs)
    rows, columns = angles[:, None].expand(side, side, -1), angles[None].expand(side, side, -1)
    both = torch.cat([rows, columns], -1).flatten(0, 1)
    return torch.stack([both.cos(), both.sin()])


def rotated(x: Tensor, turn: Turn) -> Tensor:
    """Pair i of the last dimension, (x_i, x_{i + D / 2}), turned by its place's angle."""
    cos, sin = (t.to(x.dtype) for t in turn)
    half = x.shape[-1] // 2
    return x * torch.cat([cos, cos], -1) + x.roll(half, -1) * torch.cat([-sin, sin], -1)
