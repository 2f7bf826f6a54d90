"""Invariances: the transformations under which a copy is still a copy, and the features in which copies are looked for.

A bank applies several transformations to an item (a picture or a pose). The distance of a sample to a training item is the
smallest over the transformations. The null scores go through the same bank, so more transformations do not raise more alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from tasks.common import skeleton
from tasks.metrics.features import edges, joints, pixels

PICTURE_SIDE = 64  # pixels to which pictures are reduced for the copy test
SIDE = 32  # pixels to which pictures are reduced before pixels and edges are compared

Transformation = Callable[[np.ndarray], np.ndarray]  # of a batch of items [n, ...]
BLOCK = 1024  # items prepared at once


def identity(items: np.ndarray) -> np.ndarray:
    """The items unchanged."""
    return items


@dataclass(frozen=True)
class Invariance:
    """A named transformation of a batch of items, `[n, ...]` to `[n, ...]`."""

    name: str
    apply: Transformation


@dataclass(frozen=True)
class Bank:
    """Transformations of an item and the features in which the results are compared."""

    name: str
    invariances: tuple[Invariance, ...]
    features: Transformation  # prepared items [n, ...] -> float32 [n, d]
    aligned: Transformation  # items as a figure lays them over each other
    prepare: Transformation = identity  # before anything else: how items are reduced for this bank

    def base_features(self, items: np.ndarray) -> np.ndarray:
        """Features of items as they are: float32 `[n, d]`."""
        blocks = [self.features(self.prepare(items[at : at + BLOCK])) for at in range(0, len(items), BLOCK)]
        return np.concatenate(blocks) if blocks else self.features(self.prepare(items))

    def transformed_features(self, items: np.ndarray) -> np.ndarray:
        """Features of every item under every transformation: float32 `[transformations, n, d]`."""
        prepared = self.prepare(items)
        return np.stack([self.features(invariance.apply(prepared)) for invariance in self.invariances])

    def laid_over(self, item: np.ndarray, original: np.ndarray, invariance: int) -> tuple[np.ndarray, np.ndarray]:
        """An item under a transformation, and its original, as a figure lays them over each other."""
        pair = self.invariances[invariance].apply(self.prepare(item[None])), self.prepare(original[None])
        return self.aligned(pair[0])[0], self.aligned(pair[1])[0]


@dataclass(frozen=True)
class AlignedBank:
    """Compares pictures after each was laid over the other by a similarity transform, mirrored or not (tasks/similarity)."""

    name: str = "aligned"
    invariances: tuple[Invariance, ...] = (Invariance("as is", identity), Invariance("mirror", identity))


AnyBank = Bank | AlignedBank


def flip(pictures: np.ndarray) -> np.ndarray:
    """Pictures `[n, height, width, 3]` mirrored left to right."""
    return pictures[:, :, ::-1]


def shift(right: int, down: int, pictures: np.ndarray) -> np.ndarray:
    """Pictures moved by whole pixels; the border is repeated."""
    height, width = pictures.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return pictures[:, rows][:, :, columns]


def zoom_out(border: int, pictures: np.ndarray) -> np.ndarray:
    """Pictures shrunk by `border` pixels on each side, the border repeated; this undoes a crop."""
    height, width = pictures.shape[1:3]
    channels_first = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    size = (height - 2 * border, width - 2 * border)
    smaller = functional.interpolate(channels_first, size, mode="bilinear", antialias=True)
    padded = functional.pad(smaller, (border,) * 4, mode="replicate")
    return padded.permute(0, 2, 3, 1).numpy()


def _turned_joints(poses: np.ndarray) -> np.ndarray:
    return joints(skeleton.face_forward(poses))


def _compose(first: Transformation, second: Transformation, items: np.ndarray) -> np.ndarray:
    return second(first(items))


def _with_mirror(invariances: tuple[Invariance, ...], mirror: Transformation) -> tuple[Invariance, ...]:
    """The transformations, and each of them after `mirror`."""
    mirrored = (
        Invariance(
            "mirror" if invariance is _AS_IS else f"mirror, {invariance.name}",
            partial(_compose, mirror, invariance.apply),
        )
        for invariance in invariances
    )
    return (*invariances, *mirrored)


_AS_IS = Invariance("as is", identity)
_SHIFTS = tuple(
    Invariance(f"shift {right:+d},{down:+d}", partial(shift, right, down))
    for right, down in ((-2, 0), (-1, 0), (1, 0), (2, 0), (0, -2), (0, -1), (0, 1), (0, 2))
)
_ZOOMS = tuple(Invariance(f"zoom out {border} px", partial(zoom_out, border)) for border in (1, 2, 3))


def colours(pictures: np.ndarray, size: int | None = SIDE) -> np.ndarray:
    """Pictures, uint8 or float in [0, 1], `[n, h, w, 3 or 4]`, as float32 `[n, h, w, 3]`; reduced to `size` if they are
    larger."""
    rgb = pictures[..., :3].astype(np.float32)
    if pictures.dtype == np.uint8:
        rgb /= 255
    if size is None or max(rgb.shape[1:3]) <= size:
        return rgb
    channels_first = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2)
    reduced = functional.interpolate(channels_first, (size, size), mode="area")
    return reduced.permute(0, 2, 3, 1).contiguous().numpy()


GEOMETRIC = Bank("pixels", _with_mirror((_AS_IS, *_SHIFTS, *_ZOOMS), flip), pixels, identity, colours)
COLOURS = Bank("colours", _with_mirror((_AS_IS,), flip), pixels, identity, colours)
EDGES = Bank("edges", _with_mirror((_AS_IS,), flip), edges, identity, colours)
ALIGNED = AlignedBank()
POSES = Bank("poses", _with_mirror((_AS_IS,), skeleton.mirror), joints, identity)
TURNED_POSES = Bank("turned poses", POSES.invariances, _turned_joints, skeleton.face_forward)
PICTURE_BANKS: tuple[AnyBank, ...] = (GEOMETRIC, EDGES, ALIGNED)
POSE_BANKS: tuple[AnyBank, ...] = (POSES, TURNED_POSES)
