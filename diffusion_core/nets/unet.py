"""U-Net of residual convolutions, with self- and cross-attention at low resolutions (ADM / DDPM++)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import CrossAttention, SelfAttention
from diffusion_core.nets.embedding import ContextTokens, Embedding, concat_maps, context_embedding, group_by_kind
from diffusion_core.nets.layers import LayerNorm, modulate, patches_per_side, zero_init

MAX_BOTTOM_RESOLUTION = 8  # pixels along a side, at most, at the bottom
ATTENTION_RESOLUTION = 16  # pixels along a side up to which there is attention


class UNet(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    The blocks of Dhariwal & Nichol 2021 (arXiv 2105.05233) in the shape of DDPM++ (Song et al. 2021, arXiv 2011.13456): at each
    resolution `depth` residual blocks on the way down and depth + 1 on the way up, width x (1, 2, 3, 4, 4, ...) channels. A
    strided convolution halves the side, down to MAX_BOTTOM_RESOLUTION pixels or fewer. Blocks of `attention` pixels or fewer
    have attention. `vec:*` scales and shifts every block's normalisation, `map:*` is concatenated to the channels of
    x, `tok:*` is attended to in every block that has attention. `heads` is that of `width` channels; levels with more channels
    have more heads.

    Parameters of a block of c channels: 18 c^2 + 8 width c; multiply-adds 18 c^2 a pixel. Convolutions run with channels last,
    on CPUs too: oneDNN then needs no copies, and neither does attention. The channels of each pixel are normalised (as in
    EDM2), not groups of them over the picture: with channels last each pixel is one row of memory, which is 1.4 times as fast
    on a CPU in float32 and 3.8 times in bfloat16. Raises ValueError if the size cannot be halved that often.
    """

    def __init__(
        self,
        size: int,
        channels: int = 3,
        width: int = 64,
        depth: int = 2,
        heads: int = 1,
        conds: Mapping[str, int] | None = None,
        dropout: float = 0.0,
        out: int | None = None,
        attention: int = ATTENTION_RESOLUTION,
    ) -> None:
        super().__init__()
        kinds = group_by_kind(conds, "U-Net", ("vec", "map", "tok"))
        self.maps = kinds["map"]
        emb = 4 * width
        self.embedding = Embedding(emb, kinds["vec"])
        self.context = context_embedding(emb, kinds["tok"])
        context_width = emb if kinds["tok"] else None
        sides = resolutions(size)
        widths = [width * min(level + 1, 4) for level in range(len(sides))]

        def res_block(inp: int, level: int, may_attend: bool = True) -> ResBlock:
            attends = may_attend and sides[level] <= attention
            block_heads = heads * widths[level] // width if attends else 0
            return ResBlock(inp, widths[level], emb, dropout, block_heads, context_width)

        self.conv_in = nn.Conv2d(channels + sum(self.maps.values()), width, 3, padding=1)
        self.down = nn.ModuleList()
        skip_channels = [width]
        for level in range(len(sides)):
            if level:
                self.down.append(Downsample(skip_channels[-1], widths[level]))
                skip_channels.append(widths[level])
            for _ in range(depth):
                self.down.append(res_block(skip_channels[-1], level))
                skip_channels.append(widths[level])
        bottom = len(sides) - 1
        self.middle = nn.ModuleList([res_block(widths[-1], bottom), res_block(widths[-1], bottom, may_attend=False)])
        self.up = nn.ModuleList()
        self.takes_skip: list[bool] = []  # whether a block on the way up gets a skip connection
        channels_in = widths[-1]
        for level in reversed(range(len(sides))):
            if level < bottom:
                self.up.append(Upsample(channels_in, widths[level]))
                self.takes_skip.append(False)
                channels_in = widths[level]
            for _ in range(depth + 1):
                self.up.append(res_block(channels_in + skip_channels.pop(), level))
                self.takes_skip.append(True)
                channels_in = widths[level]
        self.norm = ChannelNorm(width)
        self.conv_out = zero_init(nn.Conv2d(width, out or channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        context = self.context(cond, len(x)) if self.context is not None else None
        h = concat_maps(x, cond, self.maps, 1).contiguous(memory_format=torch.channels_last)
        h = self.conv_in(h)
        skips = [h]
        for block in self.down:
            h = block(h, emb, context)
            skips.append(h)
        for block in self.middle:
            h = block(h, emb, context)
        for block, takes_skip in zip(self.up, self.takes_skip, strict=True):
            h = block(torch.cat([h, skips.pop()], 1) if takes_skip else h, emb, context)
        y: Tensor = self.conv_out(silu(self.norm(h)))
        return y.contiguous()


class ResBlock(nn.Module):
    """A residual block `[B, inp, H, W]` to `[B, out, H, W]`; with heads, attention follows.

    The second convolution and the last layer of the attention start as zero.
    """

    def __init__(self, inp: int, out: int, emb: int, dropout: float, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inp)
        self.conv1 = nn.Conv2d(inp, out, 3, padding=1)
        self.modulation = nn.Linear(emb, 2 * out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out, out, 3, padding=1))
        self.skip = Conv1x1(inp, out) if inp != out else None
        self.attention = AttentionBlock(out, heads, context) if heads else None

    def forward(self, x: Tensor, emb: Tensor, context: ContextTokens | None) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = self.modulation(emb)[:, None, None].chunk(2, -1)
        h = silu(modulate(h.permute(0, 2, 3, 1), shift, scale)).permute(0, 3, 1, 2)
        x = (x if self.skip is None else self.skip(x)) + self.conv2(self.dropout(h))
        return x if self.attention is None else self.attention(x, context)


class ChannelNorm(LayerNorm):
    """Layer normalisation of each pixel's channels, `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Conv1x1(nn.Linear):
    """A 1 x 1 convolution `[B, inp, H, W]` to `[B, out, H, W]`, computed as a matrix product: channels are last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Downsample(nn.Conv2d):
    """Half the side by a strided convolution. Takes the same arguments as `ResBlock` and ignores embedding and context."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: ContextTokens | None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Upsample(nn.Conv2d):
    """Twice the side: nearest-neighbour upsampling, then a convolution. Takes the same arguments as `ResBlock`."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, context: ContextTokens | None) -> Tensor:  # type: ignore[override]
        return super().forward(upsample_nearest(x))


class AttentionBlock(nn.Module):
    """Self-attention among pixels and cross-attention to context tokens, on `[B, C, H, W]`."""

    def __init__(self, channels: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.attention = SelfAttention(channels, heads)
        zero_init(self.attention.out)
        self.cross_attention = None if context is None else CrossAttention(channels, heads, context)
        if self.cross_attention is not None:
            zero_init(self.cross_attention.out)

    def forward(self, x: Tensor, context: ContextTokens | None) -> Tensor:
        tokens = self.norm(pixels_as_tokens(x))
        change = self.attention(tokens)
        if self.cross_attention is not None and context is not None:
            change = change + self.cross_attention(tokens, *context)
        return x + torch.unflatten(change.transpose(1, 2), 2, tuple(x.shape[2:]))


def pixels_as_tokens(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as tokens `[B, H W, C]`; no copy if x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def resolutions(size: int) -> list[int]:
    """Sides from `size` down to MAX_BOTTOM_RESOLUTION or less, each half the one before; ValueError if one is odd."""
    sides = [size]
    while sides[-1] > MAX_BOTTOM_RESOLUTION:
        sides.append(patches_per_side(sides[-1], 2))
    return sides


def downsample_mean(x: Tensor) -> Tensor:
    """Half the side by the mean of 2 x 2 pixels."""
    return avg_pool2d(x, 2)


def upsample_nearest(x: Tensor) -> Tensor:
    """Twice the side by repeating each pixel."""
    return interpolate(x, scale_factor=2, mode="nearest")
