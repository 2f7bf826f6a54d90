"""View banks: the transformations under which a copy is still a copy, and the features in which it is looked for.

A bank turns one item (a picture or a pose) into several views; the distance of a sample to a training item is the
smallest over the views. The null scores go through the same bank, so that more views do not mean more alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from tasks.common import skeleton
from tasks.common.skeleton import face_forward
from tasks.metrics.features import edges, joints, pixels

SIDE = 32  # pixels of the pictures that are compared


@dataclass(frozen=True)
class View:
    """A named transformation of a batch of items, `[n, ...]` to `[n, ...]`."""

    name: str
    apply: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Bank:
    """Views of an item and the features in which they are compared."""

    name: str
    views: tuple[View, ...]
    features: Callable[[np.ndarray], np.ndarray]  # items [n, ...] -> float32 [n, d]
    aligned: Callable[[np.ndarray], np.ndarray]  # items as they are laid over each other in a figure

    def all_views(self, items: np.ndarray) -> np.ndarray:
        """Features of every view of every item: float32 `[v, n, d]`."""
        return np.stack([self.features(view.apply(items)) for view in self.views])


def identity(items: np.ndarray) -> np.ndarray:
    """The items as they are."""
    return items


def flip(pictures: np.ndarray) -> np.ndarray:
    """Pictures `[n, height, width, 3]` seen in a mirror."""
    return pictures[:, :, ::-1]


def shift(right: int, down: int, pictures: np.ndarray) -> np.ndarray:
    """Pictures moved by whole pixels, the border repeated."""
    height, width = pictures.shape[1:3]
    rows = np.clip(np.arange(height) - down, 0, height - 1)
    columns = np.clip(np.arange(width) - right, 0, width - 1)
    return pictures[:, rows][:, :, columns]


def zoom_out(pixels: int, pictures: np.ndarray) -> np.ndarray:
    """Pictures made smaller by `pixels` on each side, the border repeated: undoes a crop."""
    height, width = pictures.shape[1:3]
    channels_first = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    smaller = functional.interpolate(
        channels_first,
        (height - 2 * pixels, width - 2 * pixels),
        mode="bilinear",
        antialias=True,
    )
    padded = functional.pad(smaller, (pixels,) * 4, mode="replicate")
    return padded.permute(0, 2, 3, 1).numpy()


def _then(first: Callable[[np.ndarray], np.ndarray], second: Callable[[np.ndarray], np.ndarray], x: np.ndarray):
    return second(first(x))


def _with_mirror(views: tuple[View, ...], mirror: Callable[[np.ndarray], np.ndarray]) -> tuple[View, ...]:
    mirrored = (
        View(f"mirror, {v.name}" if v.name != "as is" else "mirror", partial(_then, mirror, v.apply)) for v in views
    )
    return (*views, *mirrored)


def _turned_joints(poses: np.ndarray) -> np.ndarray:
    return joints(face_forward(poses))


_AS_IS = View("as is", identity)
_SHIFTS = tuple(
    View(f"shift {right:+d},{down:+d}", partial(shift, right, down))
    for right, down in ((-2, 0), (-1, 0), (1, 0), (2, 0), (0, -2), (0, -1), (0, 1), (0, 2))
)
_ZOOMS = tuple(View(f"zoom out {pixels} px", partial(zoom_out, pixels)) for pixels in (1, 2, 3))

GEOMETRIC = Bank("pixels", _with_mirror((_AS_IS, *_SHIFTS, *_ZOOMS), flip), pixels, identity)
EDGES = Bank("edges", _with_mirror((_AS_IS,), flip), edges, identity)
POSES = Bank("poses", _with_mirror((_AS_IS,), skeleton.mirror), joints, identity)
TURNED_POSES = Bank("turned poses", POSES.views, _turned_joints, face_forward)
PICTURE_BANKS = (GEOMETRIC, EDGES)
POSE_BANKS = (POSES, TURNED_POSES)
