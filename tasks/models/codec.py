"""The codec of a picture model: how it is stored, alone in `artifacts/codec/` and inside the file of the picture model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core.codecs import Affine, Latent
from diffusion_core.nets.autoencoder import Autoencoder
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError
from tasks.config.codec import Codec
from tasks.dataset.pose_map import CHANNELS
from tasks.models import published_codec
from tasks.models.conditioning import KEYS
from tasks.models.motion_codec import MotionCodec

PictureCodec = Affine | Latent
NAME = "codec"
PREFIX = "codec."  # of its tensors in a model file
MOTION = ("gain", "world_feet")  # what a codec of motion has besides an affine map


def untrained(config: Codec) -> Autoencoder:
    """The autoencoder of a kind, initialised from the seed; without convolutions for pca."""
    torch.manual_seed(config.seed)
    widths = () if config.kind == "pca" else config.widths
    codes = config.codes if config.kind == "vq" else 0
    condition, maps = (KEYS["pose_map"], CHANNELS * config.factor**2) if config.pose else (None, 0)
    return Autoencoder(config.factor, config.latents, widths, config.depth, codes=codes, condition=condition, maps=maps)


def description(codec: PictureCodec) -> dict[str, Any] | None:
    """The arguments of the codec's autoencoder, as JSON; None if it has none."""
    return codec.net.config if isinstance(codec, Latent) else None


def tensors(codec: PictureCodec) -> dict[str, Tensor]:
    """The codec's tensors by the names that they have in a file."""
    out = {f"{PREFIX}mean": codec.mean, f"{PREFIX}scale": codec.scale}
    if isinstance(codec, MotionCodec):
        out |= {f"{PREFIX}{key}": torch.tensor(float(getattr(codec, key))) for key in MOTION}
    if isinstance(codec, Latent):
        out |= {f"{PREFIX}net.{name}": value for name, value in codec.net.state_dict().items()}
    return out


def from_tensors(stored: dict[str, Tensor], about: dict[str, Any] | None) -> PictureCodec:
    """The codec of a file: its tensors, and its `description`. Raises KeyError, RuntimeError or TypeError if
    they do not fit, UserError if it needs a package that is not installed."""
    mean, scale = stored[f"{PREFIX}mean"], stored[f"{PREFIX}scale"]
    if f"{PREFIX}gain" in stored:
        gain, world_feet = (float(stored[f"{PREFIX}{key}"]) for key in MOTION)
        return MotionCodec(mean, scale, gain=gain, world_feet=bool(world_feet))
    if about is None:
        return Affine(mean, scale)
    net = published_codec.Published(about) if "diffusers" in about else Autoencoder(**about)
    start = f"{PREFIX}net."
    net.load_state_dict({name.removeprefix(start): value for name, value in stored.items() if name.startswith(start)})
    return Latent(net, mean, scale)


def save(folder: Path, config: Codec, codec: Latent | None, meta: dict[str, Any]) -> None:
    """Write the codec into a folder; without one, that pictures stay pixels."""
    about = {
        "model": NAME,
        "config": config.model_dump(),
        "codec": None if codec is None else description(codec),
        **meta,
    }
    checkpoint.save(folder / paths.MODEL_FILE, {} if codec is None else tensors(codec), about)


def load(path: Path) -> Latent | None:
    """The codec in a codec's or a picture model's file; None if it works on pixels. Raises DataError if it is damaged."""
    stored, meta = checkpoint.load(path)
    about = meta.get("codec")
    if about is None:
        return None
    try:
        codec = from_tensors(stored, about)
    except (KeyError, RuntimeError, TypeError) as error:
        raise DataError(f"{path} was written by another version: its codec does not fit ({error}).") from error
    assert isinstance(codec, Latent)
    return codec
