"""Parts that the networks share: the embedding of level and conditions, and a transformer block modulated by it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from diffusion_core.cond import Cond, kept


class Fourier(nn.Module):
    """A number `[B]` as sines and cosines `[B, width]` of geometrically spaced frequencies."""

    frequencies: Tensor

    def __init__(self, width: int, lowest: float = 0.5, highest: float = 64.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 1, width // 2, base=highest / lowest) * lowest, False)

    def forward(self, c: Tensor) -> Tensor:
        turn = c[:, None] * self.frequencies.to(c)
        return torch.cat([turn.cos(), turn.sin()], 1) * math.sqrt(2)


class Embedding(nn.Module):
    """Level and `vec:*` conditions as one vector `[B, width]`.

    conds gives each condition's width. A condition that is withheld contributes a learned vector instead.
    """

    def __init__(self, width: int, conds: Mapping[str, int]) -> None:
        super().__init__()
        self.level = nn.Sequential(Fourier(width), nn.Linear(width, width))
        vectors = {_name(key): size for key, size in conds.items() if key.startswith("vec:")}
        self.conds = nn.ModuleDict({name: nn.Linear(size, width) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in vectors})
        self.out = nn.Linear(width, width)

    def forward(self, c_noise: Tensor, cond: Cond) -> Tensor:
        total = self.level(c_noise)
        for name, embed in self.conds.items():
            total = total + given_or_null(cond, f"vec:{name}", embed, self.nulls[name])
        return silu(self.out(silu(total)))


def given_or_null(cond: Cond, key: str, embed: nn.Module, null: Tensor) -> Tensor:
    """The embedded condition `[B, ...]`, `null` in the rows it is withheld from, or null alone if it is absent."""
    if key not in cond:
        return null
    mask = kept(cond, key)
    value = embed(cond[key])
    return value if mask is None else torch.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, null)


def _name(key: str) -> str:
    return key.split(":", 1)[1]


class Block(nn.Module):
    """Attention and a two-layer perceptron on tokens `[B, N, width]`, both modulated by an embedding `[B, width]`.

    Scale, shift and gate start at zero, so that a deep stack starts as the identity (adaLN-Zero, Peebles & Xie 2023, arXiv
    2212.09748). With `context`, attention to context tokens `[B, M, context]` comes in between.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0, context: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.modulate = zeroed(nn.Linear(width, 6 * width))
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)
        self.cross = None if context is None else CrossAttention(width, heads, context)

    def forward(
        self, x: Tensor, emb: Tensor, bias: Tensor | None = None, context: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(emb)[:, None].chunk(6, -1)
        h = norm(x) * (1 + scale1) + shift1
        q, k, v = (_heads(t, self.heads) for t in self.qkv(h).chunk(3, -1))
        h = self.project(_join(scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        x = x + gate1 * self.drop(h)
        if self.cross is not None and context is not None:
            x = x + self.cross(x, *context)
        h = norm(x) * (1 + scale2) + shift2
        return x + gate2 * self.drop(self.narrow(gelu(self.wide(h), approximate="tanh")))


class CrossAttention(nn.Module):
    """Attention from tokens `[B, N, width]` to context tokens `[B, M, context]`; starts as zero.

    `keep` `[B]` says which rows have a context; the others attend to a learned null token, as does every row beside its own.
    """

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context, 2 * width)
        self.null = nn.Parameter(torch.randn(1, 1, context) * 0.02)
        self.project = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor, context: Tensor, keep: Tensor) -> Tensor:
        context = torch.cat([self.null.expand(len(x), 1, -1), context], 1)
        mask = torch.ones(len(x), 1, 1, context.shape[1], dtype=torch.bool, device=x.device)
        mask[:, :, :, 1:] = keep[:, None, None, None]
        q = _heads(self.query(norm(x)), self.heads)
        k, v = (_heads(t, self.heads) for t in self.key_value(context).chunk(2, -1))
        return self.project(_join(scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class Head(nn.Module):
    """Tokens `[B, N, width]` to outputs `[B, N, out]`, modulated by the embedding; starts as zero."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.modulate = zeroed(nn.Linear(width, 2 * width))
        self.project = zeroed(nn.Linear(width, out))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.modulate(emb)[:, None].chunk(2, -1)
        return self.project(norm(x) * (1 + scale) + shift)


def norm(x: Tensor) -> Tensor:
    """Layer normalisation without weights; the modulation that follows has them."""
    return nn.functional.layer_norm(x, x.shape[-1:])


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer with weight and bias zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, N, width] -> [B, heads, N, width / heads]


def _join(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
