"""Attention as the networks use it: biases, masks, rotary positions, windows and cross-attention.

Queries, keys and values are `[B, heads, N, D]` with D = width / heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

MAX_EXPLICIT_SCORES = 512**2  # scores of one head that may be held in memory
Rotary = tuple[Tensor, Tensor]  # cosines and sines `[N, D / 2]`, see `rotary_embedding`


class SelfAttention(nn.Module):
    """Attention among tokens `[B, N, width]`.

    `rotary` rotates queries and keys by their positions. `bias` broadcasts against the scores `[B, heads, N, N]`: a float bias
    is added to them, a boolean one says which keys may be attended to.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        y: Tensor = self.out(join_heads(attend(q, k, v, bias)))
        return y


class WindowAttention(SelfAttention):
    """Attention within windows of window x window tokens of a square `[B, side * side, width]`, with rotary positions.

    With `shifted`, the windows are moved by half a window, so that a stack of both kinds connects neighbouring windows. Windows
    do not wrap around the edge. Liu et al. 2021 (arXiv 2103.14030), section 3.2. Raises ValueError if side does not divide by
    window.
    """

    rotary: Tensor
    mask: Tensor

    def __init__(self, width: int, heads: int, side: int, window: int, shifted: bool) -> None:
        super().__init__(width, heads)
        if side % window:
            raise ValueError(f"a side of {side} tokens does not divide into windows of {window}")
        self.side, self.window, self.shift = side, window, window // 2 if shifted else 0
        self.register_buffer("rotary", rotary_embedding(window, width // heads), False)
        # After the cyclic shift the last window of a row holds tokens of both edges, which must not attend to each other.
        wrapped = (torch.arange(side) >= side - self.shift).int()
        region = self._partition((2 * wrapped[:, None] + wrapped[None]).reshape(1, side * side, 1))[..., 0]
        self.register_buffer("mask", (region[:, :, None] == region[:, None])[:, None], False)  # [windows, 1, n, n]

    def forward(self, x: Tensor, bias: Tensor | None = None, rotary: Rotary | None = None) -> Tensor:
        if self.shift:
            x = self._roll(x, -self.shift)
            bias = self.mask.repeat(len(x), 1, 1, 1)
        y = super().forward(self._partition(x), bias, (self.rotary[0], self.rotary[1]))
        y = self._merge(y)
        return self._roll(y, self.shift) if self.shift else y

    def _roll(self, x: Tensor, by: int) -> Tensor:
        return torch.unflatten(x, 1, (self.side, self.side)).roll((by, by), (1, 2)).flatten(1, 2)

    def _partition(self, x: Tensor) -> Tensor:
        """`[B, side * side, C]` to `[B * windows, window * window, C]`."""
        count = self.side // self.window
        x = torch.unflatten(x, 1, (count, self.window, count, self.window))
        return x.transpose(2, 3).reshape(-1, self.window**2, x.shape[-1])

    def _merge(self, x: Tensor) -> Tensor:
        """The inverse of `_partition`."""
        count = self.side // self.window
        x = torch.unflatten(torch.unflatten(x, 0, (-1, count, count)), 3, (self.window, self.window))
        return x.transpose(2, 3).reshape(-1, self.side**2, x.shape[-1])


class CrossAttention(nn.Module):
    """Attention from tokens `[B, N, width]` to context tokens `[B, M, context_width]`.

    `mask` `[B, 1, 1, M]` says which context tokens may be attended to.
    """

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        (q,) = split_heads(self.query(x), 1, self.heads)
        k, v = split_heads(self.key_value(context), 2, self.heads)
        y: Tensor = self.out(join_heads(attend(q, k, v, mask)))
        return y


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v, `[B, heads, N, D]`; a boolean bias says which keys may be attended to."""
    # Torch's fused backward pass in bfloat16 on CPUs took four times as long as explicit products.
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[2] * k.shape[2] > MAX_EXPLICIT_SCORES:
        return scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if bias is not None:
        scores = scores.masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else scores + bias.to(scores.dtype)
    shares: Tensor = scores.softmax(-1)
    return shares @ v


def split_heads(x: Tensor, count: int, heads: int) -> tuple[Tensor, ...]:
    """`[B, N, count * width]` as `count` tensors `[B, heads, N, width / heads]`."""
    return tuple(torch.unflatten(t, -1, (heads, -1)).transpose(1, 2) for t in x.chunk(count, -1))


def join_heads(x: Tensor) -> Tensor:
    """`[B, heads, N, D]` to `[B, N, heads * D]`."""
    return x.transpose(1, 2).flatten(2)


def rotary_embedding(side: int, head_width: int, base: float = 100.0) -> Tensor:
    """Cosines and sines `[2, side * side, head_width / 2]` of the rotation angles of a square's positions.

    Rotary embedding (Su et al. 2021, arXiv 2104.09864) in two dimensions: half of a head's pairs rotate with the row, half with
    the column (axial, Heo et al. 2024, arXiv 2403.13298). Scores then depend on the difference of two positions only. Raises
    ValueError if head_width is not a multiple of 4.
    """
    if head_width % 4:
        raise ValueError(f"rotary positions need a head width that is a multiple of 4, got {head_width}")
    pairs = head_width // 4
    angles = torch.arange(side)[:, None] * base ** (-torch.arange(pairs) / pairs)
    rows, columns = angles[:, None].expand(side, side, -1), angles[None].expand(side, side, -1)
    both = torch.cat([rows, columns], -1).flatten(0, 1)
    return torch.stack([both.cos(), both.sin()])


def apply_rotary(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate pair i of the last dimension, (x_i, x_{i + D / 2}), by its position's angle."""
    cos, sin = (t.to(x.dtype) for t in rotary)
    half = x.shape[-1] // 2
    return x * torch.cat([cos, cos], -1) + x.roll(half, -1) * torch.cat([-sin, sin], -1)
