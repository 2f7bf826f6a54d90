"""EDM2's U-Net: no normalisation layers and no biases, because every layer preserves magnitude by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.nets.attention import attend, join_heads, split_heads
from diffusion_core.nets.embedding import Context, context, given_or_null, stacked, take
from diffusion_core.nets.layers import Others
from diffusion_core.nets.magnitude import MPFourier, MPLayer, mp_cat, mp_silu, mp_sum, unit
from diffusion_core.nets.unet import ATTENDED, doubled, halved, pixels, resolutions

RESIDUAL = 0.3  # share of the branch in a residual sum
CLIP = 256.0  # largest activation, for the sake of half precision


class EDM2UNet(nn.Module):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Karras et al. 2024 (arXiv 2312.02696), configuration G: the U-Net with its residual blocks as in table 6. x has variance one
    (the denoiser sees to that). Weights are set back to unit size at the beginning of every step of training. `vec:*` and the
    level become one vector of variance one that scales every block, `map:*` is stacked on x, `tok:*` is attended to wherever
    there is attention. `heads` is that of `width` channels.

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
        kinds = take(conds, "EDM2 U-Net", ("vec", "map", "tok"))
        self.maps = kinds["map"]
        emb = 4 * width
        self.embedding = MPEmbedding(width, emb, kinds["vec"])
        self.context: Context | None = context(emb, kinds["tok"])
        other = emb if kinds["tok"] else None
        sides = resolutions(size)
        wide = [width * min(level + 1, 4) for level in range(len(sides))]

        def part(inp: int, level: int, encodes: bool) -> MPPart:
            attended = sides[level] <= ATTENDED
            count = heads * wide[level] // width * attended
            return MPPart(inp, wide[level], emb, dropout, None, encodes, count, other)

        self.enter = MPLayer(
            channels + sum(self.maps.values()) + 1, width, 3
        )  # one channel of ones, as there are no biases
        self.down = nn.ModuleList()
        kept = [width]
        for level in range(len(sides)):
            if level:
                self.down.append(MPPart(kept[-1], kept[-1], emb, dropout, halved, True, 0, None))
                kept.append(kept[-1])
            for _ in range(depth):
                self.down.append(part(kept[-1], level, True))
                kept.append(wide[level])
        bottom = len(sides) - 1
        self.middle = nn.ModuleList(
            [part(wide[-1], bottom, False), MPPart(wide[-1], wide[-1], emb, dropout, None, False, 0, None)]
        )
        self.up = nn.ModuleList()
        self.joins: list[bool] = []
        now = wide[-1]
        for level in reversed(range(len(sides))):
            if level < bottom:
                self.up.append(MPPart(now, now, emb, dropout, doubled, False, 0, None))
                self.joins.append(False)
            for _ in range(depth + 1):
                self.up.append(part(now + kept.pop(), level, False))
                self.joins.append(True)
                now = wide[level]
        self.leave = MPLayer(width, out or channels, 3)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        if self.training:
            self.set_back()
        emb = self.embedding(c_noise, cond).to(x.dtype)
        others: Others | None = None
        if self.context is not None:
            tokens, mask = self.context(cond, len(x))
            others = unit(tokens, -1), mask
        h = stacked(x, cond, self.maps, 1)
        h = torch.cat([h, h.new_ones(len(h), 1, *h.shape[2:])], 1).contiguous(memory_format=torch.channels_last)
        h = self.enter(h)
        skips = [h]
        for part in self.down:
            h = part(h, emb, others)
            skips.append(h)
        for part in self.middle:
            h = part(h, emb, others)
        for part, joins in zip(self.up, self.joins, strict=True):
            h = part(mp_cat(h, skips.pop()) if joins else h, emb, others)
        return self.leave(h, self.gain).contiguous()

    def set_back(self) -> None:
        """Every weight to unit size, which changes nothing that the network computes."""
        for layer in self.modules():
            if isinstance(layer, MPLayer):
                layer.set_back()


class MPEmbedding(nn.Module):
    """Level and `vec:*` conditions as a vector `[B, emb]` of variance one, passed through SiLU."""

    def __init__(self, width: int, emb: int, vectors: Mapping[str, int]) -> None:
        super().__init__()
        self.level = MPFourier(width)
        self.enter = MPLayer(width, emb)
        self.conds = nn.ModuleDict({name: MPVector(size, emb) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.randn(emb)) for name in vectors})

    def forward(self, c_noise: Tensor, cond: Cond) -> Tensor:
        total = self.enter(self.level(c_noise))
        if self.conds:
            told = torch.zeros_like(total)
            for name, embed in self.conds.items():
                told = told + given_or_null(cond, f"vec:{name}", embed, unit(self.nulls[name], 0))
            total = mp_sum(total, told / math.sqrt(len(self.conds)), 0.5)
        return mp_silu(total)


class MPVector(nn.Module):
    """A vector `[B, n]` of any size, a one beside it so that its size is not lost, to variance one: `[B, emb]`."""

    def __init__(self, size: int, emb: int) -> None:
        super().__init__()
        self.layer = MPLayer(size + 1, emb)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(unit(torch.cat([x, x.new_ones(len(x), 1)], 1), 1))


class MPPart(nn.Module):
    """A residual block of the way down (`encodes`) or up, `[B, inp, H, W]` to `[B, out, H2, W2]`; attention if it has heads."""

    def __init__(
        self,
        inp: int,
        out: int,
        emb: int,
        dropout: float,
        resample: Callable[[Tensor], Tensor] | None,
        encodes: bool,
        heads: int,
        other: int | None,
    ) -> None:
        super().__init__()
        self.resample, self.encodes = resample, encodes
        self.conv1 = MPLayer(out if encodes else inp, out, 3)
        self.modulate = MPLayer(emb, out)
        self.gain = nn.Parameter(torch.zeros([]))
        self.drop = nn.Dropout(dropout)
        self.conv2 = MPLayer(out, out, 3)
        self.skip = MPLayer(inp, out, 1) if inp != out else None
        self.attention = MPAttention(out, heads) if heads else None
        self.cross = MPAttention(out, heads, other) if heads and other is not None else None

    def forward(self, x: Tensor, emb: Tensor, others: Others | None) -> Tensor:
        if self.resample is not None:
            x = self.resample(x)
        if self.encodes:
            x = unit(x if self.skip is None else self.skip(x), 1)
        h = self.conv1(mp_silu(x))
        h = mp_silu(h * (self.modulate(emb, self.gain) + 1)[:, :, None, None])
        h = self.conv2(self.drop(h))
        if not self.encodes and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, h, RESIDUAL)
        if self.attention is not None:
            x = self.attention(x)
        if self.cross is not None and others is not None:
            x = self.cross(x, others)
        return x.clamp(-CLIP, CLIP)


class MPAttention(nn.Module):
    """Attention among pixels, or from pixels to context tokens of width `other`; queries, keys and values of variance one."""

    def __init__(self, channels: int, heads: int, other: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.query = MPLayer(channels, channels)
        self.key_value = MPLayer(other or channels, 2 * channels)
        self.project = MPLayer(channels, channels)

    def forward(self, x: Tensor, others: Others | None = None) -> Tensor:
        tokens = pixels(x)
        listened, mask = (tokens, None) if others is None else others
        (q,) = split_heads(self.query(tokens), 1, self.heads)
        k, v = split_heads(self.key_value(listened.to(tokens.dtype)), 2, self.heads)
        q, k, v = (unit(t, -1) for t in (q, k, v))
        heard = self.project(join_heads(attend(q, k, v, mask)))
        return mp_sum(x, heard.transpose(1, 2).unflatten(2, tuple(x.shape[2:])), RESIDUAL)
