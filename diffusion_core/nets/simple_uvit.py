"""Simple diffusion's U-ViT: a U-Net whose middle, at the lowest resolution, is a transformer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diffusion_core.nets.embedding import ContextTokens
from diffusion_core.nets.layers import DiTBlock
from diffusion_core.nets.unet import UNet, pixels_as_tokens, resolutions


class SimpleUViT(UNet):
    """`(x [B, channels, size, size], c_noise [B], cond) -> [B, out or channels, size, size]`.

    Hoogeboom et al. 2023 (arXiv 2301.11093), section 3.3: most of the parameters are where pixels are few, so that large
    pictures cost little. The U-Net of this package, with 2 + 2 `depth` transformer blocks in the middle; they see the noise
    level as its other blocks do, and positions are learned. Attention is in the middle only; context tokens (`tok:*`) are
    attended to there.

    Parameters of a middle block of c channels: 12 c^2 + 24 width c; the other blocks have those of the U-Net.
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
        super().__init__(size, channels, width, depth, heads, conds, dropout, out, attention=0)
        sides = resolutions(size)
        wide = width * min(len(sides), 4)
        context = 4 * width if self.context is not None else None
        blocks = [MiddleBlock(wide, heads * wide // width, dropout, context, 4 * width) for _ in range(2 + 2 * depth)]
        blocks[0].position = nn.Parameter(torch.randn(sides[-1] ** 2, wide) * 0.02)
        self.middle = nn.ModuleList(blocks)


class MiddleBlock(nn.Module):
    """A transformer block on the pixels of `[B, C, H, W]`. The first one has a learned position for each pixel."""

    position: nn.Parameter | None

    def __init__(self, channels: int, heads: int, dropout: float, context: int | None, emb: int) -> None:
        super().__init__()
        self.block = DiTBlock(channels, heads, dropout, context, emb)
        self.register_parameter("position", None)

    def forward(self, x: Tensor, emb: Tensor, context: ContextTokens | None) -> Tensor:
        tokens = pixels_as_tokens(x)
        if self.position is not None:
            tokens = tokens + self.position
        tokens = self.block(tokens, emb, context=context)
        return torch.unflatten(tokens.transpose(1, 2), 2, tuple(x.shape[2:]))
