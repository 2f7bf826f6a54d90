"""The codec of the motion model: changes from frame to frame are amplified, and feet are where they stand in the world.

The features of `tasks.common.motion` are relative to the hips, so the foot of a person who walks moves in them even while it
stands, and the model must move it exactly against the path of the hips. In the world a standing foot is constant over time,
and amplified changes make small errors of that constant large.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core.codecs import Affine, Latent, Sharpened
from tasks.common import motion
from tasks.common.skeleton import INDEX

FEET = [INDEX[f"{side}_{name}"] for side in ("left", "right") for name in ("ankle", "heel", "foot_index")]


@dataclass(frozen=True)
class MotionCodec(Sharpened):
    """Features of clips `[n, frames, 33, 3]` or of single poses `[n, 33, 3]` in the network's units, and back.

    `world_feet`: whether the joints FEET are relative to the hips of the clip's first frame, as the path is, not to those of
    their own frame.
    """

    world_feet: bool = False

    @classmethod
    def fit(cls, x0: Tensor, sd: float, gain: float, world_feet: bool) -> MotionCodec:  # type: ignore[override]
        """The codec of clips with mean 0 in each coordinate and root mean square `sd`.

        Raises ValueError if all frames are equal.
        """
        fitted = Sharpened.of(_placed(x0, 1) if world_feet else x0, sd, gain)
        return cls(fitted.mean, fitted.scale, gain=gain, world_feet=world_feet)

    def encode(self, x0: Tensor) -> Tensor:
        """Data units to network units."""
        return super().encode(_placed(x0, 1) if self.world_feet else x0)

    def decode(self, z: Tensor, cond: object = None) -> Tensor:
        """Network units to data units, whatever the conditions."""
        x0 = super().decode(z)
        return _placed(x0, -1) if self.world_feet else x0


def _placed(x0: Tensor, sign: int) -> Tensor:
    """Features with the path of the hips added to the joints FEET, or subtracted."""
    shift = torch.zeros_like(x0)
    shift[..., FEET, :] = sign * x0[..., [motion.PATH], :] / motion.PATH_SCALE
    return x0 + shift


def scaled_features(codec: Affine | Latent, z: Tensor, frames: int | None = None) -> Tensor:
    """The features of clips `[n, F, 33, 3]` in the network's units, minus a constant, divided by the codec's scale.

    These are the network's units of a codec that is merely affine. Frames after the first `frames` are single poses.
    """
    if not isinstance(codec, MotionCodec):
        return z
    if frames is not None and frames < z.shape[1]:
        alone = scaled_features(codec, z[:, frames:].flatten(0, 1)[:, None]).unflatten(0, (len(z), -1))[:, :, 0]
        return torch.cat([scaled_features(codec, z[:, :frames]), alone], 1)
    return (codec.decode(z) - offset(codec, z)) / codec.scale.to(z)


def offset(codec: Affine | Latent, like: Tensor) -> Tensor:
    """The features whose `scaled_features` are 0, `[33, 3]`."""
    mean: Tensor = codec.mean.to(like)
    return _placed(mean, -1) if isinstance(codec, MotionCodec) and codec.world_feet else mean


def options(codec: Affine | Latent) -> tuple[float, bool]:
    """What the codec does besides an affine map: sharpening and world feet."""
    return (codec.gain, codec.world_feet) if isinstance(codec, MotionCodec) else (0.0, False)
