"""U-Net of residual convolutions, with self- and cross-attention at low resolutions (ADM / DDPM++)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import CrossAttention, SelfAttention
from diffusion_core.nets.embedding import Embedding, context, stacked, take
from diffusion_core.nets.layers import Norm, Others, modulated, whole, zeroed

SMALLEST = 8  # pixels along a side, at most, at the bottom
ATTENDED = 16  # pixels along a side from which on there is attention


class UNet(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    The blocks of Dhariwal & Nichol 2021 (arXiv 2105.05233) in the shape of DDPM++ (Song et al. 2021, arXiv 2011.13456): at each
    resolution `depth` residual blocks on the way down and depth + 1 on the way up, width x (1, 2, 3, 4, 4, ...) channels, each
    halving the side by a convolution, down to SMALLEST pixels; attention from ATTENDED pixels on. `vec:*` scales and shifts
    every block's normalisation, `map:*` is stacked on x, `tok:*` is attended to wherever there is attention. `heads` is that
    of `width` channels, more channels have more heads.

    Parameters of a block of c channels: 18 c^2 + 8 width c; multiply-adds 18 c^2 a pixel. Convolutions run channels-last, on
    CPU too: oneDNN then needs no copies, and attention sees tokens without any. Normalised are the channels of each pixel
    (as in EDM2), not groups of them over the picture: with channels last that is a row of memory each, 1.4 times as fast on a
    CPU in float32 and 3.8 times in bfloat16.
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
    ) -> None:
        super().__init__()
        kinds = take(conds, "U-Net", ("vec", "map", "tok"))
        self.maps = kinds["map"]
        emb = 4 * width
        self.embedding = Embedding(emb, kinds["vec"])
        self.context = context(emb, kinds["tok"])
        other = emb if kinds["tok"] else None
        sides = resolutions(size)
        wide = [width * min(level + 1, 4) for level in range(len(sides))]

        def part(inp: int, level: int, attends: bool = True) -> Part:
            count = heads * wide[level] // width if attends and sides[level] <= ATTENDED else 0
            return Part(inp, wide[level], emb, dropout, count, other)

        self.enter = nn.Conv2d(channels + sum(self.maps.values()), width, 3, padding=1)
        self.down = nn.ModuleList()
        kept = [width]  # channels of what is kept for the way up
        for level in range(len(sides)):
            if level:
                self.down.append(Halve(kept[-1], wide[level]))
                kept.append(wide[level])
            for _ in range(depth):
                self.down.append(part(kept[-1], level))
                kept.append(wide[level])
        bottom = len(sides) - 1
        self.middle = nn.ModuleList([part(wide[-1], bottom), part(wide[-1], bottom, attends=False)])
        self.up = nn.ModuleList()
        self.joins: list[bool] = []  # whether a part on the way up takes something kept
        now = wide[-1]
        for level in reversed(range(len(sides))):
            if level < bottom:
                self.up.append(Double(now, wide[level]))
                self.joins.append(False)
                now = wide[level]
            for _ in range(depth + 1):
                self.up.append(part(now + kept.pop(), level))
                self.joins.append(True)
                now = wide[level]
        self.norm = ChannelNorm(width)
        self.leave = zeroed(nn.Conv2d(width, out or channels, 3, padding=1))
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        emb = self.embedding(c_noise, cond)
        others = self.context(cond, len(x)) if self.context is not None else None
        h = stacked(x, cond, self.maps, 1).contiguous(memory_format=torch.channels_last)
        h = self.enter(h)
        skips = [h]
        for part in self.down:
            h = part(h, emb, others)
            skips.append(h)
        for part in self.middle:
            h = part(h, emb, others)
        for part, joins in zip(self.up, self.joins, strict=True):
            h = part(torch.cat([h, skips.pop()], 1) if joins else h, emb, others)
        return self.leave(silu(self.norm(h))).contiguous()


class Part(nn.Module):
    """A residual block `[B, inp, H, W]` to `[B, out, H, W]` and then, with heads, attention.

    The second convolution and the attention's last layer start as zero.
    """

    def __init__(self, inp: int, out: int, emb: int, dropout: float, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(inp)
        self.conv1 = nn.Conv2d(inp, out, 3, padding=1)
        self.modulate = nn.Linear(emb, 2 * out)
        self.drop = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out, out, 3, padding=1))
        self.skip = Mix(inp, out) if inp != out else None
        self.attention = Attended(out, heads, context) if heads else None

    def forward(self, x: Tensor, emb: Tensor, others: Others | None) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        scale, shift = self.modulate(emb)[:, None, None].chunk(2, -1)
        h = silu(modulated(h.permute(0, 2, 3, 1), shift, scale)).permute(0, 3, 1, 2)
        x = (x if self.skip is None else self.skip(x)) + self.conv2(self.drop(h))
        return x if self.attention is None else self.attention(x, others)


class ChannelNorm(Norm):
    """Layer normalisation of each pixel's channels, `[B, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mix(nn.Linear):
    """A convolution of 1 x 1, as the matrix product that it is when channels are last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Halve(nn.Conv2d):
    """Half the side by a convolution; in a `Part`'s place, so that level and context are passed by."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor, others: Others | None) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Double(nn.Conv2d):
    """Twice the side: each pixel four times, then a convolution."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__(inp, out, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor, others: Others | None) -> Tensor:  # type: ignore[override]
        return super().forward(doubled(x))


class Attended(nn.Module):
    """Self-attention among pixels and cross-attention to context tokens, on `[B, C, H, W]`."""

    def __init__(self, channels: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.attention = SelfAttention(channels, heads)
        zeroed(self.attention.project)
        self.cross = None if context is None else CrossAttention(channels, heads, context)
        if self.cross is not None:
            zeroed(self.cross.project)

    def forward(self, x: Tensor, others: Others | None) -> Tensor:
        tokens = self.norm(pixels(x))
        change = self.attention(tokens)
        if self.cross is not None and others is not None:
            change = change + self.cross(tokens, *others)
        return x + change.transpose(1, 2).unflatten(2, tuple(x.shape[2:]))


def pixels(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as tokens `[B, H W, C]`; no copy if x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def resolutions(size: int) -> list[int]:
    """Sides from `size` down to SMALLEST or less; ValueError if they cannot be halved so often."""
    sides = [size]
    while sides[-1] > SMALLEST:
        sides.append(whole(sides[-1], 2))
    return sides


def halved(x: Tensor) -> Tensor:
    """Means of 2 x 2 pixels."""
    return avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times."""
    return interpolate(x, scale_factor=2, mode="nearest")
