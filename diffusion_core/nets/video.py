"""A picture network with attention over time: pictures become clips (inflation).

Ho et al. 2022 (arXiv 2204.03458, section 3): after each block of the picture network every place in the picture attends to the
same place in the other frames. That attention starts as zero, so at the beginning each frame is what the picture network makes
of it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_core.conditioning import KEEP, SEGMENT, Cond
from diffusion_core.nets.attention import SelfAttention
from diffusion_core.nets.layers import DiTBlock, LayerNorm, ViTBlock, zero_init
from diffusion_core.nets.motion_transformer import rotary_line
from diffusion_core.nets.unet import ResBlock

BLOCKS = (DiTBlock, ViTBlock, ResBlock)  # what attention over time follows
HEAD_WIDTH = 32  # at most


class VideoNet(nn.Module):
    """`(x [B, frames, C, h, w], c_noise [B], cond) -> [B, frames, out, h, w]` by an inflated picture network.

    `net` is a picture network with blocks of the types BLOCKS (patch transformer, DiT, U-ViT, hourglass, U-Nets), which are
    replaced in place. It is evaluated on all frames as one batch. Any number of frames can be given.

    `segment:x` `[B, frames]` says which frames belong together: attention over time never crosses from one number to another,
    so clips and single pictures are trained together (section 3.2 of the paper). Without it all frames are one clip.

    Conditions are those of the picture network: `vec:*` `[B, n]` or `[B, frames, n]`, `map:*` `[B, n, h, w]` or
    `[B, frames, n, h, w]`, `tok:*` `[B, m, n]` or `[B, frames, m, n]`.

    Parameters: 4 width^2 more for each block. Raises ValueError if the network has no such blocks.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.times = Times()
        self.inflated = _inflate(net, self.times)
        if not self.inflated:
            known = ", ".join(kind.__name__ for kind in BLOCKS)
            raise ValueError(f"{type(net).__name__} has no blocks after which attention over time could come: {known}")

    def picture_names(self) -> dict[str, str]:
        """The parameters that come from the picture network: their names here, and the names that they had there."""
        temporal = [f"{name}." for name, module in self.named_modules() if isinstance(module, TemporalBlock)]
        names = {}
        for name, _ in self.named_parameters():
            inside = next((prefix for prefix in temporal if name.startswith(prefix)), None)
            if inside is None:
                names[name] = name.removeprefix("net.")
            elif name.startswith(f"{inside}block."):
                names[name] = inside.removeprefix("net.") + name.removeprefix(f"{inside}block.")
        return names

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        batch, frames = x.shape[:2]
        self.times.frames, self.times.segment = frames, cond.get(SEGMENT)
        try:
            y: Tensor = self.net(x.flatten(0, 1), c_noise.repeat_interleave(frames), _of_frames(cond, frames))
        finally:
            self.times.segment = None
        return torch.unflatten(y, 0, (batch, frames))


class Times:
    """What the temporal layers need to know of the call that is being evaluated; all of a network share one object."""

    def __init__(self) -> None:
        self.frames = 1
        self.segment: Tensor | None = None


class TemporalBlock(nn.Module):
    """A block of a picture network, followed by attention over time.

    Its output is tokens `[B * frames, N, width]` or a feature map `[B * frames, width, h, w]`.
    """

    def __init__(self, block: nn.Module, width: int, times: Times) -> None:
        super().__init__()
        self.block, self.times = block, times
        self.norm = LayerNorm(width)
        heads = max(1, width // HEAD_WIDTH)
        while width % (2 * heads):
            heads -= 1
        self.attention = SelfAttention(width, heads)
        zero_init(self.attention.out)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        h: Tensor = self.block(*args, **kwargs)
        is_map = h.ndim == 4
        tokens = h.flatten(2).transpose(1, 2) if is_map else h
        frames, count = self.times.frames, tokens.shape[1]
        clips = torch.unflatten(tokens, 0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # [B * N, frames, width]
        together = None
        if self.times.segment is not None:
            segment = self.times.segment
            together = (segment[:, :, None] == segment[:, None])[:, None].repeat_interleave(count, 0)
        rotary = rotary_line(frames, clips.shape[-1] // self.attention.heads, h.device)
        change = self.attention(self.norm(clips), together, rotary)
        change = torch.unflatten(change, 0, (-1, count)).transpose(1, 2).flatten(0, 1)
        return h + (change.transpose(1, 2).reshape(h.shape) if is_map else change)


def _inflate(net: nn.Module, times: Times) -> int:
    """Replace the blocks of a network by blocks with attention over time; returns how many there were."""
    count = 0
    for name, child in list(net.named_children()):
        if isinstance(child, BLOCKS):
            block = TemporalBlock(child, _width(child), times)
            first = next(child.parameters())
            setattr(net, name, block.to(first.device, first.dtype))
            count += 1
        else:
            count += _inflate(child, times)
    return count


def _width(block: nn.Module) -> int:
    """The channels of a block's output."""
    if isinstance(block, ResBlock):
        return block.conv2.out_channels
    assert isinstance(block, DiTBlock | ViTBlock)
    return block.feed_forward.contract.out_features


def _of_frames(cond: Cond, frames: int) -> Cond:
    """Conditions with a row for each frame. What is given for a whole clip holds for each of its frames."""
    dimensions = {"vec": 2, "map": 4, "tok": 3}  # of a condition of single pictures
    out: Cond = {}
    for key, value in cond.items():
        if key == SEGMENT:
            continue
        wanted = 1 if key.startswith(KEEP) else dimensions.get(key.partition(":")[0], value.ndim)
        out[key] = value.repeat_interleave(frames, 0) if value.ndim == wanted else value.flatten(0, 1)
    return out


def beside(frames: int, stills: int, batch: int) -> Tensor:
    """`segment:x` `[batch, frames + stills]` of rows with a clip of so many frames and single pictures behind it."""
    numbers: Sequence[int] = [0] * frames + list(range(1, stills + 1))
    return torch.tensor(numbers).expand(batch, -1)
