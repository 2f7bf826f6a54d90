"""EDM2's U-Net: no normalisation layers and no biases, because every layer preserves magnitude by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import attend, join_heads, split_heads
from diffusion_core.nets.embedding import (
    ContextEmbedding,
    ContextTokens,
    concat_maps,
    context_embedding,
    embed_or_null,
    group_by_kind,
)
from diffusion_core.nets.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise, normalise_weights
from diffusion_core.nets.unet import (
    ATTENTION_RESOLUTION,
    downsample_mean,
    pixels_as_tokens,
    resolutions,
    upsample_nearest,
)

RESIDUAL_BALANCE = 0.3  # t of a residual sum: the branch's share
MAX_ACTIVATION = 256.0  # activations are clipped to this, for half precision


class EDM2UNet(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Karras et al. 2024 (arXiv 2312.02696), configuration G: the U-Net with its residual blocks as in table 6. x must have
    variance one; `Preconditioned` sees to that. Weights are normalised at the beginning of every training step. `vec:*` and
    the level become one vector of variance one that scales the channels of every block, `map:*` is concatenated to the channels
    of x, `tok:*` is attended to in every block that has attention. `heads` is that of `width` channels; levels with more
    channels have more heads.

    Parameters of a block of c channels: 18 c^2 + 4 width c; multiply-adds 18 c^2 a pixel.
    """

    def __init__(
        self,
        size: int,
        channels: int = 3,
        width: int = 64,
        depth: int = 3,
        heads: int = 1,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "EDM2 U-Net", ("vec", "map", "tok"))
        self.maps = kinds["map"]
        emb = 4 * width
        self.embedding = MPEmbedding(width, emb, kinds["vec"])
        self.context: ContextEmbedding | None = context_embedding(emb, kinds["tok"])
        context_width = emb if kinds["tok"] else None
        sides = resolutions(size)
        widths = [width * min(level + 1, 4) for level in range(len(sides))]

        def block(inp: int, level: int, encoder: bool) -> MPBlock:
            attends = sides[level] <= ATTENTION_RESOLUTION
            block_heads = heads * widths[level] // width * attends
            return MPBlock(inp, widths[level], emb, dropout, None, encoder, block_heads, context_width)

        # One more channel, of ones, because there are no biases.
        self.conv_in = MPConv(channels + sum(self.maps.values()) + 1, width, 3)
        self.down = nn.ModuleList()
        skip_channels = [width]
        for level in range(len(sides)):
            if level:
                channels_in = skip_channels[-1]
                self.down.append(MPBlock(channels_in, channels_in, emb, dropout, downsample_mean, True, 0, None))
                skip_channels.append(channels_in)
            for _ in range(depth):
                self.down.append(block(skip_channels[-1], level, True))
                skip_channels.append(widths[level])
        bottom = len(sides) - 1
        self.middle = nn.ModuleList(
            [block(widths[-1], bottom, False), MPBlock(widths[-1], widths[-1], emb, dropout, None, False, 0, None)]
        )
        self.up = nn.ModuleList()
        self.takes_skip: list[bool] = []
        channels_in = widths[-1]
        for level in reversed(range(len(sides))):
            if level < bottom:
                self.up.append(MPBlock(channels_in, channels_in, emb, dropout, upsample_nearest, False, 0, None))
                self.takes_skip.append(False)
            for _ in range(depth + 1):
                self.up.append(block(channels_in + skip_channels.pop(), level, False))
                self.takes_skip.append(True)
                channels_in = widths[level]
        self.conv_out = MPConv(width, out or channels, 3)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        if self.training:
            normalise_weights(self)
        emb = self.embedding(c_noise, cond).to(x.dtype)
        context: ContextTokens | None = None
        if self.context is not None:
            tokens, mask = self.context(cond, len(x))
            context = normalise(tokens, -1), mask
        h = concat_maps(x, cond, self.maps, 1)
        h = torch.cat([h, h.new_ones(len(h), 1, *h.shape[2:])], 1).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(h)
        skips = [h]
        for block in self.down:
            h = block(h, emb, context)
            skips.append(h)
        for block in self.middle:
            h = block(h, emb, context)
        for block, takes_skip in zip(self.up, self.takes_skip, strict=True):
            h = block(mp_cat(h, skips.pop()) if takes_skip else h, emb, context)
        y: Tensor = self.conv_out(h, self.gain)
        return y.contiguous()


class MPEmbedding(nn.Module):
    """Level and `vec:*` conditions as a vector `[B, emb]` of variance one, after a SiLU."""

    def __init__(self, width: int, emb: int, vectors: Mapping[str, int]) -> None:
        super().__init__()
        self.level = MPFourier(width)
        self.level_layer = MPConv(width, emb)
        self.conds = nn.ModuleDict({name: MPVector(size, emb) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.randn(emb)) for name in vectors})

    def forward(self, c_noise: Tensor, cond: Cond) -> Tensor:
        total = self.level_layer(self.level(c_noise))
        if self.conds:
            vectors = torch.zeros_like(total)
            for name, embed in self.conds.items():
                vectors = vectors + embed_or_null(cond, f"vec:{name}", embed, normalise(self.nulls[name], 0))
            total = mp_sum(total, vectors / math.sqrt(len(self.conds)), 0.5)
        return mp_silu(total)


class MPVector(nn.Module):
    """A vector `[B, n]` of any norm to variance one, `[B, emb]`; a one is appended so that the norm is not lost."""

    def __init__(self, size: int, emb: int) -> None:
        super().__init__()
        self.layer = MPConv(size + 1, emb)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(normalise(torch.cat([x, x.new_ones(len(x), 1)], 1), 1))
        return y


class MPBlock(nn.Module):
    """A residual block of encoder or decoder, `[B, inp, H, W]` to `[B, out, H2, W2]`; with heads, attention follows."""

    def __init__(
        self,
        inp: int,
        out: int,
        emb: int,
        dropout: float,
        resample: Callable[[Tensor], Tensor] | None,
        encoder: bool,
        heads: int,
        context: int | None,
    ) -> None:
        super().__init__()
        self.resample, self.encoder = resample, encoder
        self.conv1 = MPConv(out if encoder else inp, out, 3)
        self.modulation = MPConv(emb, out)
        self.gain = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)
        self.conv2 = MPConv(out, out, 3)
        self.skip = MPConv(inp, out, 1) if inp != out else None
        self.attention = MPAttention(out, heads) if heads else None
        self.cross_attention = MPAttention(out, heads, context) if heads and context is not None else None

    def forward(self, x: Tensor, emb: Tensor, context: ContextTokens | None) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)
        if self.encoder:
            x = normalise(x if self.skip is None else self.skip(x), 1)
        h = self.conv1(mp_silu(x))
        h = mp_silu(h * (self.modulation(emb, self.gain) + 1)[:, :, None, None])
        h = self.conv2(self.dropout(h))
        if not self.encoder and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, h, RESIDUAL_BALANCE)
        if self.attention is not None:
            x = self.attention(x)
        if self.cross_attention is not None and context is not None:
            x = self.cross_attention(x, context)
        return x.clamp(-MAX_ACTIVATION, MAX_ACTIVATION)


class MPAttention(nn.Module):
    """Attention among pixels, or from pixels to context tokens; queries, keys and values have variance one.

    `context_width` is the width of the context tokens.
    """

    def __init__(self, channels: int, heads: int, context_width: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = MPConv(channels, channels)
        self.key_value = MPConv(context_width or channels, 2 * channels)
        self.out = MPConv(channels, channels)

    def forward(self, x: Tensor, context: ContextTokens | None = None) -> Tensor:
        tokens = pixels_as_tokens(x)
        attended_to, mask = (tokens, None) if context is None else context
        (q,) = split_heads(self.query(tokens), 1, self.heads)
        k, v = split_heads(self.key_value(attended_to.to(tokens.dtype)), 2, self.heads)
        q, k, v = (normalise(t, -1) for t in (q, k, v))
        y = self.out(join_heads(attend(q, k, v, mask)))
        return mp_sum(x, torch.unflatten(y.transpose(1, 2), 2, tuple(x.shape[2:])), RESIDUAL_BALANCE)
