"""Parts that the transformers share: blocks of attention and perceptron, patches, and places."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pixel_shuffle, pixel_unshuffle

from diffusion_core.nets.attention import CrossAttention, SelfAttention, Turn
from diffusion_core.nets.embedding import Fourier

Others = tuple[Tensor, Tensor | None]  # context tokens [B, M, width] and which of them count
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


class Perceptron(nn.Module):
    """Two layers with a GELU between them, four times as wide inside; each token by itself."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(gelu(self.wide(x)))  # the tanh approximation is slower on CPUs


class Block(nn.Module):
    """Attention and perceptron on tokens `[B, N, width]`, both modulated by an embedding `[B, emb]` (emb = width by default).

    Scale, shift and gate start at zero, so that a deep stack starts as the identity (adaLN-Zero, Peebles & Xie 2023, arXiv
    2212.09748). With `context`, attention to context tokens of that width comes in between, and starts as zero too.
    `attention` is another kind than that of all tokens to all.
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
        self.modulate = zeroed(nn.Linear(emb or width, 6 * width))
        self.attention = attention or SelfAttention(width, heads)
        self.perceptron = Perceptron(width)
        self.drop = nn.Dropout(dropout)
        self.cross = None if context is None else CrossAttention(width, heads, context)
        if self.cross is not None:
            zeroed(self.cross.project)

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        bias: Tensor | None = None,
        turn: Turn | None = None,
        context: Others | None = None,
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(emb)[:, None].chunk(6, -1)
        x = x + gate1 * self.drop(self.attention(modulated(x, shift1, scale1), bias, turn))
        if self.cross is not None and context is not None:
            x = x + self.cross(norm(x), *context)
        return x + gate2 * self.drop(self.perceptron(modulated(x, shift2, scale2)))


class PlainBlock(nn.Module):
    """Attention and perceptron on tokens `[B, N, width]`, each behind a layer normalisation: a vision transformer's block."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = Norm(width)
        self.attention = SelfAttention(width, heads)
        self.norm2 = Norm(width)
        self.perceptron = Perceptron(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), bias))
        return x + self.drop(self.perceptron(self.norm2(x)))


class Head(nn.Module):
    """Tokens `[B, N, width]` to outputs `[B, N, out]`, modulated by an embedding `[B, emb]`; starts as zero."""

    def __init__(self, width: int, out: int, emb: int | None = None) -> None:
        super().__init__()
        self.modulate = zeroed(nn.Linear(emb or width, 2 * width))
        self.project = zeroed(nn.Linear(width, out))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.modulate(emb)[:, None].chunk(2, -1)
        return self.project(modulated(x, shift, scale))


class Norm(nn.LayerNorm):
    """Layer normalisation that writes the type of its input.

    Under autocast the usual one writes float32, and everything elementwise behind it moves twice the bytes. Sums are float32
    inside the kernel in any case.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return torch.native_layer_norm(x, self.normalized_shape, weight, bias, self.eps)[0]


def norm(x: Tensor) -> Tensor:
    """Layer normalisation without weights, see `Norm`; the modulation that follows has them."""
    return torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)[0]


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalised, then scaled by 1 + scale and shifted."""
    return norm(x) * (1 + scale) + shift


def zeroed(layer: Layer) -> Layer:
    """The layer with weight and bias zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def patches(x: Tensor, patch: int) -> Tensor:
    """A picture `[B, C, H, W]` as tokens `[B, H W / patch^2, C patch^2]`, row by row."""
    return pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def picture(tokens: Tensor, patch: int, side: int) -> Tensor:
    """`patches` undone: tokens `[B, side * side, C patch^2]` as a picture `[B, C, side patch, side patch]`."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (side, side)), patch)


def places(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, `[side * side, width]`."""
    half = Fourier(width // 2, lowest=0.5, highest=side)
    line = half(torch.linspace(-1, 1, side))
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)


def whole(size: int, patch: int) -> int:
    """Patches along a side; ValueError if the size is not a multiple of the patch."""
    if size % patch:
        raise ValueError(f"a picture of {size} pixels does not divide into patches of {patch}")
    return size // patch
