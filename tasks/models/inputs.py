"""The examples that a model is trained and judged on: x0 in data units, and its conditions, read from the shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_core.codecs import Affine
from diffusion_core.conditioning import PADDING, Cond
from tasks import paths
from tasks.common.errors import DataError
from tasks.common.skeleton import mirror
from tasks.common.subset import evenly_spaced
from tasks.config.motion import MotionModel
from tasks.config.params import Pictures
from tasks.config.video import VideoModel
from tasks.dataset import frames
from tasks.dataset.padding import padding_maps
from tasks.dataset.shards import ShardDataset
from tasks.models import motion, video
from tasks.models.conditioning import AnyModel, at_latents, conditions

DATA_SD = 0.5  # standard deviation of what the networks see, EDM's convention


@dataclass(frozen=True)
class Examples:
    """Examples in memory: x0 `[n, *S]` and their conditions."""

    x0: Tensor
    cond: Cond

    def __len__(self) -> int:
        return len(self.x0)

    def some(self, count: int) -> Examples:
        """At most `count` of them, evenly spaced."""
        rows = torch.tensor(evenly_spaced(len(self), count), dtype=torch.int64)
        return Examples(self.x0[rows], {key: value[rows] for key, value in self.cond.items()})


def fit_codec(x0: Tensor, per_coordinate: bool) -> Affine:
    """The codec between data units and the network's units. Raises DataError if all examples are the same."""
    try:
        return Affine.fit(x0, DATA_SD, per_coordinate)
    except ValueError as error:
        raise DataError("All training examples are the same: there is nothing to learn.") from error


def usable(root: Path, split: str, config: AnyModel) -> ShardDataset:
    """The samples of a split that a model can use: for `pictures`, those that have a picture; for others, clips."""
    if isinstance(config, VideoModel):
        return ShardDataset(root / paths.VIDEO_CLIPS, split)
    if isinstance(config, MotionModel):
        return ShardDataset(root / paths.CLIPS, split)
    dataset = ShardDataset(root / paths.SHARDS, split)
    return dataset.pictured() if isinstance(config, Pictures) else dataset


def as_pictures(values: Tensor) -> np.ndarray:
    """Pictures uint8 `[n, s, s, 3]` from data units, `[n, 3, s, s]` in -1 ... 1."""
    return ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def as_clips(values: Tensor) -> np.ndarray:
    """Clips uint8 `[n, frames, s, s, 3]` from data units, `[n, frames, 3, s, s]` in -1 ... 1."""
    return as_pictures(values.flatten(0, 1)).reshape(*values.shape[:2], *values.shape[-2:], 3)


def _pictures(dataset: ShardDataset, config: Pictures) -> Tensor:
    clips = isinstance(config, VideoModel)
    pixels = frames.read(dataset, config.size) if clips else dataset.pictures_uint8(config.size)
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1


def examples(
    dataset: ShardDataset,
    config: AnyModel,
    categories: list[str],
    mirrored: bool,
    factor: int = 1,
    padded: bool = False,
) -> Examples:
    """The n examples of a split in data units; with `mirrored`, 2 n: the mirror image of example i is example n + i.

    Pose maps have the resolution of a codec's latents, if its factor is given. With `padded`, the conditions of pictures say
    where padding is.

    A mirror image exchanges left and right: x of the landmarks changes sign, landmarks change names, the picture is flipped.
    Captions stay as they are.
    """
    if isinstance(config, MotionModel):
        return _clips(dataset, config, categories, mirrored)
    metas = dataset.metas()
    poses = dataset.clips() if isinstance(config, VideoModel) else dataset.poses()
    names = [meta["category"] for meta in metas]
    margin = dataset.about["margin"]
    text = dataset.texts() if "text" in config.conditions else None
    cond, flipped_cond = (
        conditions(config, categories, margin, names, p, factor, text) for p in (poses, mirror(poses))
    )
    if isinstance(config, Pictures):
        x0 = _pictures(dataset, config)
        flipped = x0.flip(-1)
        if padded:
            clips = isinstance(config, VideoModel)
            padding = video.padding(metas, config.size, x0.shape[1]) if clips else padding_maps(metas, config.size)
            cond |= at_latents({PADDING: padding}, factor)
            flipped_cond |= at_latents({PADDING: padding.flip(-1)}, factor)
    else:
        x0, flipped = torch.from_numpy(poses), torch.from_numpy(mirror(poses))
    if not mirrored:
        return Examples(x0, cond)
    return Examples(torch.cat([x0, flipped]), {key: torch.cat([cond[key], flipped_cond[key]]) for key in cond})


def _clips(dataset: ShardDataset, config: MotionModel, categories: list[str], mirrored: bool) -> Examples:
    x0, known, names = motion.clip_examples(dataset, mirrored)
    cond = conditions(config, categories, 0.0, names)
    return Examples(x0, {**cond, **motion.maps(config, x0, known), **motion.path_weight(x0, known)})
