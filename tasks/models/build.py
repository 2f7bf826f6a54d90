"""Builds the network of a model from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from diffusion_core.nets.dit import DiT
from diffusion_core.nets.edm2_unet import EDM2UNet
from diffusion_core.nets.hourglass import Hourglass
from diffusion_core.nets.mmdit import MMDiT
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.pose_transformer import PoseTransformer
from diffusion_core.nets.rin import RIN
from diffusion_core.nets.unet import UNet
from diffusion_core.nets.uvit import UViT
from tasks.common.errors import UserError
from tasks.common.skeleton import BONES
from tasks.config.training import Pictures, Poses

# Name in params.yaml -> constructor (size, patch, width, depth, heads, conditions, dropout, channels) -> network.
PICTURE_NETS: Mapping[str, Callable[[int, int, int, int, int, Mapping[str, int], float, int], nn.Module]] = {
    "patch": lambda s, p, w, d, h, c, drop, ch: PatchTransformer(s, p, ch, w, d, h, c, drop),
    "dit": lambda s, p, w, d, h, c, drop, ch: DiT(s, p, ch, w, d, h, c, drop),
    "mmdit": lambda s, p, w, d, h, c, drop, ch: MMDiT(s, p, ch, w, d, h, c, drop),
    "uvit": lambda s, p, w, d, h, c, drop, ch: UViT(s, p, ch, w, d, h, c, drop),
    "rin": lambda s, p, w, d, h, c, drop, ch: RIN(s, p, ch, w, d, h, c, drop),
    "hourglass": lambda s, p, w, d, h, c, drop, ch: Hourglass(s, p, ch, w, d, h, c, drop),
    "unet": lambda s, p, w, d, h, c, drop, ch: UNet(s, ch, w, d, h, c, drop),
    "edm2": lambda s, p, w, d, h, c, drop, ch: EDM2UNet(s, ch, w, d, h, c, drop),
}


def network(config: Poses | Pictures, conds: Mapping[str, int], shape: Sequence[int] | None = None) -> nn.Module:
    """The untrained network of a model, initialised from its seed. `conds`: condition -> width.

    shape: of a picture as the network gets it, (channels, side, side); by default in pixels.

    Raises UserError if the network cannot have this size or does not accept one of the conditions.
    """
    torch.manual_seed(config.seed)
    width, depth, heads = config.shape
    try:
        if isinstance(config, Pictures):
            channels, side, _ = shape or (3, config.size, config.size)
            constructor = PICTURE_NETS[config.net]
            return constructor(side, config.patch, width, depth, heads, conds, config.dropout, channels)
        return PoseTransformer(33, BONES, width=width, depth=depth, heads=heads, conds=conds, dropout=config.dropout)
    except ValueError as error:
        name = f"pictures ({config.net})" if isinstance(config, Pictures) else "poses"
        raise UserError(f"params.yaml: {name}: {error}.") from error
