"""Builds the network of a model from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

# Name in params.yaml -> constructor (size, patch, width, depth, heads, conditions, dropout) -> network.
PICTURE_NETS: Mapping[str, Callable[[int, int, int, int, int, Mapping[str, int], float], nn.Module]] = {
    "patch": lambda s, p, w, d, h, c, drop: PatchTransformer(s, p, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "dit": lambda s, p, w, d, h, c, drop: DiT(s, p, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "mmdit": lambda s, p, w, d, h, c, drop: MMDiT(s, p, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "uvit": lambda s, p, w, d, h, c, drop: UViT(s, p, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "rin": lambda s, p, w, d, h, c, drop: RIN(s, p, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "hourglass": lambda s, p, w, d, h, c, drop: Hourglass(s, p, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "unet": lambda s, p, w, d, h, c, drop: UNet(s, width=w, depth=d, heads=h, conds=c, dropout=drop),
    "edm2": lambda s, p, w, d, h, c, drop: EDM2UNet(s, width=w, depth=d, heads=h, conds=c, dropout=drop),
}


def network(config: Poses | Pictures, conds: Mapping[str, int]) -> nn.Module:
    """The untrained network of a model, initialised from its seed. `conds`: condition -> width.

    Raises UserError if the network cannot have this size or does not accept one of the conditions.
    """
    torch.manual_seed(config.seed)
    width, depth, heads = config.shape
    try:
        if isinstance(config, Pictures):
            return PICTURE_NETS[config.net](config.size, config.patch, width, depth, heads, conds, config.dropout)
        return PoseTransformer(33, BONES, width=width, depth=depth, heads=heads, conds=conds, dropout=config.dropout)
    except ValueError as error:
        name = f"pictures ({config.net})" if isinstance(config, Pictures) else "poses"
        raise UserError(f"params.yaml: {name}: {error}.") from error
