"""The conditions of a model: what the network is given beside the noisy example, and how training changes it.

    category      vec:category   one-hot
    pose_vector   vec:pose       99 numbers, the normalised landmarks
    pose_map      map:pose       image channels with soft bones where the picture is to show them
    pose_tokens   tok:pose       one token per joint, its position and its name (one-hot), for cross-attention
    text          tok:text       the embedding of the caption (`shard.text`), one token each, for cross-attention
    first_pose    map:first      motion: the first pose, beside every frame
    path          map:path       motion: the path of the hips and a 1, beside every joint

`vec:augment` describes how an example was augmented, `vec:pose_level` how much noise was added to its pose; both are zero in
sampling. `map:self` is the network's own first estimate (self-conditioning). `map:padding` says where a picture is padding;
models have it whose training pictures have padding anywhere, and in sampling it is withheld, which means that there is none.

The upscaler is given the smaller picture, `map:low`, the level of the noise on it, `vec:low_level`, and to which size it
enlarges, `vec:size`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pixel_unshuffle

from diffusion_core import rng
from diffusion_core.codecs import Affine, Latent
from diffusion_core.conditioning import AUGMENT, KEEP, LOW, PADDING, WEIGHT, Cond, drop, keys
from diffusion_core.rng import TransformStream
from diffusion_core.schedules import sigma_level
from diffusion_core.training import augmentation
from diffusion_core.training.trainer import Transform
from tasks.common.errors import UserError
from tasks.common.motion import in_place
from tasks.common.skeleton import MIRROR, mirror
from tasks.config.motion import MotionModel
from tasks.config.training import Pictures, Poses
from tasks.config.upscaler import Upscaler
from tasks.dataset.pose_map import CHANNELS, MIRRORED, pose_map

# Name in params.yaml -> key.
KEYS = {
    "category": "vec:category", "pose_vector": "vec:pose", "pose_map": "map:pose", "pose_tokens": "tok:pose",
    "text": "tok:text", "first_pose": "map:first", "path": "map:path",
}  # fmt: skip

AnyModel = Poses | Pictures | MotionModel

JOINTS = 33
SELF = "map:self"
POSE_LEVEL = "vec:pose_level"
LOW_LEVEL, SIZE = "vec:low_level", "vec:size"  # of the upscaler, besides LOW
REAL_SHARE = 0.99  # of a moved pixel that must come from real ones
JITTER_SCALE, JITTER_SHIFT = 0.07, 0.035  # standard deviations: of the log size, and of the place in picture sides


def widths(
    config: AnyModel | Upscaler,
    categories: int,
    factor: int = 1,
    channels: int = 3,
    padded: bool = False,
    text: int | None = None,
) -> dict[str, int]:
    """The width of each condition of a model's network, whose codec has this factor and so many channels.

    padded: whether training pictures have padding. Its map is the last condition, so that a warm start can add or remove it.
    text: width of the text encoder. Raises UserError if the model has the condition and there is none.
    """
    if isinstance(config, Upscaler):
        return {LOW: channels, LOW_LEVEL: 1, SIZE: 1}
    width = {
        "category": categories,
        "pose_vector": 3 * JOINTS,
        "pose_map": CHANNELS * factor**2,
        "pose_tokens": 3 + JOINTS,
        "first_pose": 3,
        "path": 4,
    }
    if "text" in config.conditions:
        if text is None:
            raise UserError("pictures.conditions has text, so shard.text must name a text encoder.")
        width["text"] = text
    out = {KEYS[name]: width[name] for name in config.conditions}
    if config.augment:
        out[AUGMENT] = augmentation.WIDTH
    if config.condition_noise:
        out[POSE_LEVEL] = 1
    if config.self_condition:
        out[SELF] = channels
    if padded:
        out[PADDING] = 1
    return out


def conditions(
    config: AnyModel,
    categories: list[str],
    margin: float,
    names: Sequence[str | None],
    poses: np.ndarray | None = None,
    factor: int = 1,
    text: np.ndarray | None = None,
) -> Cond:
    """The conditions for categories `names`, poses `[n, 33, 3]`, or clips `[n, frames, 33, 3]`, and embeddings of captions
    `[n, length, width]`: those that the model has.

    A category that is None or not in `categories` is withheld. Without poses, all conditions on the pose are withheld, and
    without embeddings the text. Maps have the resolution of the latents of a codec with this factor.
    """
    cond: Cond = {}
    if "category" in config.conditions:
        index = {name: i for i, name in enumerate(categories)}
        known = torch.tensor([name in index for name in names], dtype=torch.bool)
        rows = torch.zeros(len(names), len(categories))
        for i, name in enumerate(names):
            if name in index:
                rows[i, index[name]] = 1
        cond["vec:category"] = rows
        if not known.all():
            cond[f"{KEEP}vec:category"] = known
    if poses is not None and isinstance(config, Pictures):
        given = torch.from_numpy(in_place(poses) if poses.ndim == 4 else poses).float()
        if "pose_map" in config.conditions:
            cond["map:pose"] = pose_map(poses, config.size, margin)
        if "pose_vector" in config.conditions:
            cond["vec:pose"] = given.flatten(-2)
        if "pose_tokens" in config.conditions:
            cond["tok:pose"] = torch.cat([given, torch.eye(JOINTS).expand(*given.shape[:-1], -1)], -1)
    if text is not None and "text" in config.conditions:
        cond[KEYS["text"]] = torch.from_numpy(text).float()
    if config.augment:
        cond[AUGMENT] = augmentation.no_transform(len(names))
    if config.condition_noise:
        cond[POSE_LEVEL] = torch.zeros(len(names), 1)
    return at_latents(cond, factor)


def smaller_picture(low: Tensor, size: Tensor, sigma: Tensor, seed: rng.Seed, ids: Tensor) -> Cond:
    """The upscaler's conditions: pictures `[B, 3, s, s]` in the network's units with noise of sigma `[B]`, doubled.

    `size` `[B]`: pixels of the whole picture after doubling. Noise-conditioning augmentation, Ho et al. 2021 (arXiv
    2106.15282), section 4.2. The noise is a function of (seed, ids).
    """
    cond = augmentation.add_condition_noise({LOW: low}, LOW, sigma_level(sigma), seed, ids)
    cond[LOW] = interpolate(cond[LOW], scale_factor=2.0, mode="nearest")
    return {**cond, SIZE: (size.double() / 64).log2().to(low)[:, None]}


def at_latents(cond: Cond, factor: int) -> Cond:
    """Maps and weights of pixels at the resolution of latents: factor x factor pixels become channels of a map, and their
    mean a weight or a share of padding."""
    if factor == 1:
        return cond
    out = dict(cond)
    for key, value in cond.items():
        if key in (WEIGHT, PADDING):
            frames = value.flatten(0, -4)  # one, or all of a clip
            out[key] = avg_pool2d(frames, factor).unflatten(0, value.shape[:-3])
        elif key.startswith("map:") and key != SELF:
            out[key] = pixel_unshuffle(value, factor)
    return out


def body_weight(maps: Tensor, more: float) -> Tensor:
    """What an error costs at each pixel, `[..., 1, s, s]` with mean 1 for each picture: 1 + more on the bones of pose maps."""
    weight = 1 + more * maps.amax(-3, keepdim=True)
    return weight / weight.mean((-3, -2, -1), keepdim=True)


def weights(cond: Cond, more: float) -> Cond:
    """The conditions with the weight of each pixel: none on padding, and as much more on the limbs as `body_weight` says."""
    weight = body_weight(cond["map:pose"], more) if more and "map:pose" in cond else None
    if PADDING in cond:
        real = 1 - cond[PADDING]
        weight = real if weight is None else weight * real
    return cond if weight is None else {**cond, WEIGHT: weight}


def jittered(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
    """Pictures a little larger or smaller and shifted, their pose maps alike; the jitter is a function of (seed, ids[i]).

    The landmarks need no change: hips and torso are their origin and unit.
    """
    chosen = augmentation.random_transforms(
        seed, ids, 1.0, flip=False, scale=JITTER_SCALE, turn=0.0, shift=JITTER_SHIFT
    )
    x0, moved = _transformed(x0, cond, chosen.to(x0))
    return x0, moved if AUGMENT in cond else {key: value for key, value in moved.items() if key != AUGMENT}


def transform(config: AnyModel, codec: Affine | Latent) -> Transform | None:
    """The transform of training batches: augment the examples, add noise to the pose, withhold single conditions. None: none.

    x0 is in the network's units, before and after.
    """
    if not (config.augment or config.condition_noise or config.condition_dropout_each):
        return None

    def transformed(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
        if config.augment:
            chosen = augmentation.random_transforms(
                rng.fold(seed, TransformStream.AUGMENTATION), ids, config.augment, flip=not config.mirror
            ).to(x0)
            if isinstance(config, Pictures):
                x0, cond = _transformed(x0, cond, chosen)
            else:
                moved, cond = augmentation.transform_poses(codec.decode(x0), cond, chosen, MIRROR)
                x0 = codec.encode(moved).to(x0)
        if config.condition_noise:
            sigma = config.condition_noise * rng.uniform((), rng.fold(seed, TransformStream.CONDITION_LEVEL), ids)
            for i, key in enumerate(key for key in keys(cond) if key.endswith(":pose")):
                noise_seed = rng.fold(seed, TransformStream.CONDITION_NOISE, i)
                features = 3 if key == "tok:pose" else None  # the rest of a token says which joint it is
                cond = augmentation.add_condition_noise(cond, key, sigma_level(sigma), noise_seed, ids, features)
        return x0, drop(
            cond, 0.0, rng.fold(seed, TransformStream.SINGLE_CONDITION_DROPOUT), ids, each=config.condition_dropout_each
        )

    return transformed


def _transformed(x0: Tensor, cond: Cond, chosen: Tensor) -> tuple[Tensor, Cond]:
    """Pictures, pose maps and maps of padding transformed alike; a flip exchanges left and right.

    What appears beyond the edges of a picture counts as padding where the model knows of padding at all.

    The pose vector and tokens are flipped, but neither rotated, scaled nor shifted: `vec:augment` tells the network about that.
    """
    flip = chosen[:, 0].bool()
    moved = dict(cond)
    if "map:pose" in cond:
        maps = torch.where(flip[:, None, None, None], cond["map:pose"][:, list(MIRRORED)], cond["map:pose"])
        moved["map:pose"], _ = augmentation.transform_pictures(maps, {}, chosen)
    if PADDING in cond:
        real, _ = augmentation.transform_pictures(1 - cond[PADDING], {}, chosen, outside="zeros")
        moved[PADDING] = (real < REAL_SHARE).float()
    for key in ("vec:pose", "tok:pose"):
        if key in cond:
            rows = cond[key].reshape(len(x0), JOINTS, -1)
            pose = torch.from_numpy(mirror(rows[..., :3].cpu().numpy())).to(rows)
            other = torch.cat([pose, rows[..., 3:]], 2).reshape(cond[key].shape)
            moved[key] = torch.where(flip.reshape(-1, *[1] * (other.ndim - 1)), other, cond[key])
    x0, described = augmentation.transform_pictures(x0, {}, chosen)
    return x0, {**moved, **described}
