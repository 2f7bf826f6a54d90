"""Layers that the transformers share: blocks of attention and feed-forward layers, patches, and positions."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pixel_shuffle, pixel_unshuffle

from diffusion_core.nets.attention import CrossAttention, Rotary, SelfAttention
from diffusion_core.nets.embedding import ContextTokens, FourierFeatures

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside; acts on each token by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.contract(gelu(self.expand(x)))  # the tanh approximation is slower on CPUs
        return y


class DiTBlock(nn.Module):
    """Attention and feed-forward layers on tokens `[B, N, width]`, modulated by an embedding `[B, emb]`.

    Scale, shift and gate start at zero, so that a deep stack starts as the identity (adaLN-Zero, Peebles & Xie 2023, arXiv
    2212.09748). With `context`, the width of context tokens, cross-attention to them comes in between; it starts as zero too.
    `emb` is width by default. `attention` replaces the attention among all tokens.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float = 0.0,
        context: int | None = None,
        emb: int | None = None,
        attention: SelfAttention | None = None,
    ) -> None:
        super().__init__()
        self.modulation = zero_init(nn.Linear(emb or width, 6 * width))
        self.attention = attention or SelfAttention(width, heads)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)
        self.cross_attention = None if context is None else CrossAttention(width, heads, context)
        if self.cross_attention is not None:
            zero_init(self.cross_attention.out)

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        bias: Tensor | None = None,
        rotary: Rotary | None = None,
        context: ContextTokens | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb)[:, None].chunk(6, -1)
        x = x + gate1 * self.dropout(self.attention(modulate(x, shift1, scale1), bias, rotary))
        if self.cross_attention is not None and context is not None:
            x = x + self.cross_attention(layer_norm(x), *context)
        y: Tensor = x + gate2 * self.dropout(self.feed_forward(modulate(x, shift2, scale2)))
        return y


class ViTBlock(nn.Module):
    """Attention and feed-forward layers on tokens `[B, N, width]`, each after a layer normalisation (pre-norm)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), bias))
        y: Tensor = x + self.dropout(self.feed_forward(self.norm2(x)))
        return y


class FinalLayer(nn.Module):
    """Tokens `[B, N, width]` to outputs `[B, N, out]`, modulated by an embedding `[B, emb]`; starts as zero."""

    def __init__(self, width: int, out: int, emb: int | None = None) -> None:
        super().__init__()
        self.modulation = zero_init(nn.Linear(emb or width, 2 * width))
        self.out = zero_init(nn.Linear(width, out))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.modulation(emb)[:, None].chunk(2, -1)
        y: Tensor = self.out(modulate(x, shift, scale))
        return y


class LayerNorm(nn.LayerNorm):
    """Layer normalisation that returns the type of its input.

    Under autocast torch's own returns float32, and every elementwise operation after it then moves twice the bytes. The kernel
    sums in float32 either way.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.native_layer_norm(x, self.normalized_shape, weight, bias, self.eps)[0]


def layer_norm(x: Tensor) -> Tensor:
    """`LayerNorm` over the last dimension without weights, for layers that a modulation follows."""
    return torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)[0]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x normalised over its last dimension, then scaled by 1 + scale and shifted."""
    return layer_norm(x) * (1 + scale) + shift


def zero_init(layer: Layer) -> Layer:
    """Set the layer's weight and bias to zero, and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def patchify(x: Tensor, patch: int) -> Tensor:
    """A picture `[B, C, H, W]` as tokens `[B, H W / patch^2, C patch^2]`, row by row."""
    return pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def unpatchify(tokens: Tensor, patch: int, side: int) -> Tensor:
    """The inverse of `patchify`: tokens `[B, side * side, C patch^2]` as a picture `[B, C, side patch, side patch]`."""
    return pixel_shuffle(torch.unflatten(tokens.transpose(1, 2), 2, (side, side)), patch)


def sincos_positions(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `[side * side, width]`."""
    features = FourierFeatures(width // 2, lowest=0.5, highest=side)
    line = features(torch.linspace(-1, 1, side, device=features.frequencies.device))
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def patches_per_side(size: int, patch: int) -> int:
    """size / patch; ValueError if the size is not a multiple of the patch."""
    if size % patch:
        raise ValueError(f"a picture of {size} pixels does not divide into patches of {patch}")
    return size // patch
