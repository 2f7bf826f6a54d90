"""U-Net without attention on squares of 2 x 2 pixels, for enlarging pictures: trained on crops, it works at any larger size."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffusion_core.conditioning import Cond
from diffusion_core.nets.embedding import group_by_kind
from diffusion_core.nets.layers import patches_per_side
from diffusion_core.nets.unet import UNet, resolutions


class EfficientUNet(nn.Module):
    """`(x [B, channels, s, s], c_noise [B], cond) -> [B, out or channels, s, s]`, s = `size` or any other multiple of `stride`.

    The super-resolution network of Imagen (Saharia et al. 2022, arXiv 2205.11487, appendix B.1) in the shape of this
    package's `UNet`: without attention, and with most of its work at low resolution. 2 x 2 pixels become channels before the
    U-Net and pixels again after it, `map:*` (with the side of x) alike, so a doubled low-resolution picture costs what it
    cost at its own resolution. Every output depends on a neighbourhood only, and normalisation is for each pixel. `heads` is
    ignored. Parameters and multiply-adds are those of the U-Net at half the size. Raises ValueError if the size cannot be
    halved that often.
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
        group_by_kind(conds, "Efficient U-Net", ("vec", "map"))
        half = patches_per_side(size, 2)
        inner = {key: 4 * count if key.startswith("map:") else count for key, count in (conds or {}).items()}
        self.unet = UNet(half, 4 * channels, width, depth, heads, inner, dropout, 4 * (out or channels), attention=0)
        self.stride = 2 ** len(resolutions(half))  # moving x by so many pixels moves the output with it

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        halved = {key: pixel_unshuffle(value, 2) if key.startswith("map:") else value for key, value in cond.items()}
        return pixel_shuffle(self.unet(pixel_unshuffle(x, 2), c_noise, halved), 2)
