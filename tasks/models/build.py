"""Builds the network of a model from its parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from diffusion_core.extras.tokens import TokenNet
from diffusion_core.nets.dit import DiT
from diffusion_core.nets.edm2_unet import EDM2UNet
from diffusion_core.nets.efficient_unet import EfficientUNet
from diffusion_core.nets.hourglass import Hourglass
from diffusion_core.nets.mmdit import MMDiT
from diffusion_core.nets.motion_transformer import MotionTransformer
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.pose_transformer import PoseTransformer
from diffusion_core.nets.rin import RIN
from diffusion_core.nets.simple_uvit import SimpleUViT
from diffusion_core.nets.unet import UNet
from diffusion_core.nets.uvit import UViT
from diffusion_core.nets.video import VideoNet
from tasks.common.errors import UserError
from tasks.common.motion import PARTS
from tasks.common.skeleton import BONES
from tasks.config.motion import MotionModel
from tasks.config.training import Pictures, Poses
from tasks.config.upscaler import Upscaler
from tasks.config.video import VideoModel

# Name in params.yaml -> constructor (size, patch, keywords that all networks have) -> network.
PICTURE_NETS: Mapping[str, Callable[..., nn.Module]] = {
    "patch": PatchTransformer,
    "dit": DiT,
    "mmdit": MMDiT,
    "uvit": UViT,
    "rin": RIN,
    "hourglass": Hourglass,
    "unet": lambda size, patch, **keywords: UNet(size, **keywords),
    "simple_uvit": lambda size, patch, **keywords: SimpleUViT(size, **keywords),
    "edm2": lambda size, patch, **keywords: EDM2UNet(size, **keywords),
    "efficient_unet": lambda size, patch, **keywords: EfficientUNet(size, **keywords),
}


def network(
    config: Poses | Pictures | Upscaler | MotionModel,
    conds: Mapping[str, int],
    shape: Sequence[int] | None = None,
    outputs: int = 1,
    codes: int | None = None,
    classes: int | None = None,
) -> nn.Module:
    """The untrained network of a model, initialised from its seed. `conds`: condition -> width.

    `shape`: of a picture as the network gets it, (channels, side, side); by default in pixels. The network returns `outputs`
    times as many channels as it is given, or one for each of the `classes`. With `codes` it takes and gives tokens, which have
    vectors of as many numbers as the shape has channels.

    Raises UserError if the network cannot have this size or does not accept one of the conditions.
    """
    torch.manual_seed(config.seed)
    width, depth, heads = config.shape
    channels, side = 3, 0  # coordinates of a joint
    if isinstance(config, Pictures):
        channels, side, _ = shape or (3, config.size, config.size)
    elif isinstance(config, Upscaler):
        side = config.crop
    keywords: dict[str, Any] = {
        "width": width, "depth": depth, "heads": heads, "conds": conds, "dropout": config.dropout,
        "channels": channels, "out": codes or classes or outputs * channels,
    }  # fmt: skip
    try:
        if isinstance(config, Pictures):
            if config.net == "rin":
                keywords["latent_self_conditioning"] = config.latent_self_conditioning
            net = PICTURE_NETS[config.net](side, config.patch, **keywords)
            if isinstance(config, VideoModel):
                return VideoNet(net)
            return net if codes is None else TokenNet(net, side, codes, channels)
        if isinstance(config, Upscaler):
            return EfficientUNet(side, **keywords)
        if isinstance(config, MotionModel):
            return MotionTransformer(33, BONES, PARTS, **keywords)
        return PoseTransformer(33, BONES, **keywords)
    except ValueError as error:
        names = {
            Poses: "poses",
            Pictures: f"pictures ({config.net_name})",
            Upscaler: "upscaler",
            MotionModel: "motion.model",
            VideoModel: "video, which begins as the picture model",
        }
        name = names[type(config)]
        raise UserError(f"params.yaml: {name}: {error}.") from error
