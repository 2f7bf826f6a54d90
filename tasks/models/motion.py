"""Examples and conditions of the motion model, and the poses that ride along with clips in training.

An example is a clip in the form `tasks.common.motion.features`. Joint training follows Video Diffusion Models (Ho et al. 2022,
arXiv 2204.03458, section 3.2): single poses are further frames of a row, with a category of their own, and attention over time
is masked so that neither they nor the clip know of each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.codecs import Affine, Latent
from diffusion_core.conditioning import SEGMENT, WEIGHT, Cond, drop
from diffusion_core.rng import TransformStream
from diffusion_core.training.trainer import Transform
from tasks.common import motion
from tasks.common.skeleton import face_forward, mirror
from tasks.config.motion import MotionModel
from tasks.dataset.shards import ShardDataset

FIRST, PATH_MAP, CATEGORY = "map:first", "map:path", "vec:category"


def clip_examples(dataset: ShardDataset, mirrored: bool) -> tuple[Tensor, Tensor, list[str]]:
    """Features of the clips of a split, `[n, frames, 33, 3]`, whether their path is known, bool `[n]`, and their categories.

    With `mirrored` there are 2 n: the mirror image of clip i is number n + i.
    """
    clips, metas = dataset.clips(), dataset.metas()
    known = torch.tensor([bool(meta["path"]) for meta in metas])
    categories = [str(meta["category"]) for meta in metas]
    x0 = torch.from_numpy(motion.features(clips))
    if not mirrored:
        return x0, known, categories
    flipped = torch.from_numpy(motion.features(mirror(clips)))
    return torch.cat([x0, flipped]), known.repeat(2), categories * 2


def one_hot(categories: Sequence[str], names: Sequence[str | None]) -> Tensor:
    """The categories as rows of zeros and a one; only zeros for a name that is not among them."""
    index = {name: i for i, name in enumerate(categories)}
    rows = torch.zeros(len(names), len(categories))
    for i, name in enumerate(names):
        if name in index:
            rows[i, index[name]] = 1
    return rows


def maps(config: MotionModel, x0: Tensor, known: Tensor) -> Cond:
    """First pose and path as conditions, of clips that are known (in training). A path that is not known is zeros."""
    cond: Cond = {}
    if "first_pose" in config.conditions:
        cond |= first_pose_map(x0[:, 0], x0.shape[1])
    if "path" in config.conditions:
        cond |= path_map(x0[:, :, motion.PATH], known)
    return cond


def first_pose_map(pose: Tensor, frames: int) -> Cond:
    """The condition for first poses `[n, 33, 3]` (features of a clip's first frame)."""
    return {FIRST: pose[:, None].expand(-1, frames, -1, -1)}


def path_map(path: Tensor, known: Tensor | None = None) -> Cond:
    """The condition for paths `[n, frames, 3]` of the hips as the features hold them, times PATH_SCALE."""
    told = (
        torch.ones_like(path[..., :1]) if known is None else known.to(path)[:, None, None].expand(-1, path.shape[1], 1)
    )
    return {PATH_MAP: torch.cat([path * told, told], -1)[:, :, None].expand(-1, -1, 33, -1)}


def path_weight(x0: Tensor, known: Tensor) -> Cond:
    """What errors cost: nothing in the place of the path where it is not known."""
    weight = torch.ones(*x0.shape[:-1], 1)
    weight[~known, :, motion.PATH] = 0
    return {WEIGHT: weight}


class Stills:
    """Poses of the dataset beside clips, in the network's units: `x0` `[n, 33, 3]`, `category` one-hot `[n, categories]`."""

    def __init__(
        self, dataset: ShardDataset, categories: Sequence[str], codec: Affine | Latent, mirrored: bool
    ) -> None:
        poses = face_forward(dataset.poses())
        both = np.concatenate([poses, mirror(poses)]) if mirrored else poses
        names = [str(meta["category"]) for meta in dataset.metas()]
        self.keys = dataset.keys
        self.x0 = codec.encode(torch.from_numpy(motion.features(both)))
        self.category = one_hot(categories, names * (len(both) // max(len(poses), 1)))

    def digest(self) -> str:
        """Sha256 of the poses as the network gets them, and of their categories."""
        data = hashlib.sha256()
        for values in (self.x0, self.category):
            data.update(str(tuple(values.shape)).encode())
            data.update(values.contiguous().numpy().tobytes())
        return data.hexdigest()

    def beside(self, x0: Tensor, cond: Cond, count: int, seed: rng.Seed, ids: Tensor) -> tuple[Tensor, Cond]:
        """Clips `[B, F, 33, 3]` with `count` poses behind them, `[B, F + count, 33, 3]`.

        Which poses row i gets is a function of (seed, ids[i]). A pose has neither a first pose nor a path, and its place of the
        path costs nothing.
        """
        batch, frames = x0.shape[:2]
        rows = (rng.uniform((count,), seed, ids) * len(self.x0)).long()
        extra = self.x0[rows].to(x0)
        out = dict(cond)
        if CATEGORY in cond:
            of_clip = cond[CATEGORY][:, None].expand(-1, frames, -1)
            out[CATEGORY] = torch.cat([of_clip, self.category[rows].to(x0)], 1)
        for key in (FIRST, PATH_MAP):
            if key in cond:
                out[key] = torch.cat([cond[key], cond[key].new_zeros(batch, count, *cond[key].shape[2:])], 1)
        weight = torch.ones(batch, count, 33, 1)
        weight[:, :, motion.PATH] = 0
        out[WEIGHT] = torch.cat([cond.get(WEIGHT, torch.ones(batch, frames, 33, 1)), weight], 1)
        segment = torch.cat([torch.zeros(frames, dtype=torch.int64), torch.arange(1, count + 1)])
        out[SEGMENT] = segment.expand(batch, -1)
        return torch.cat([x0, extra], 1), out


def transform(config: MotionModel, stills: Stills | None) -> Transform | None:
    """The transform of training batches: withhold first pose and path, put poses beside clips. None: none."""
    if not config.pose_dropout and stills is None:
        return None

    def transformed(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
        poses = {key: cond[key] for key in (FIRST, PATH_MAP) if key in cond}
        dropped = drop(
            poses, 0.0, rng.fold(seed, TransformStream.SINGLE_CONDITION_DROPOUT), ids, each=config.pose_dropout
        )
        cond = {**cond, **dropped}
        if stills is None:
            return x0, cond
        return stills.beside(x0, cond, config.stills, rng.fold(seed, TransformStream.STILLS), ids)

    return transformed
