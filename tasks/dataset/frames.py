"""The pictures of clips in shards: the member `frames.npy` of a sample, uint8 `[frames, size, size, 3]`."""

from __future__ import annotations

import io

import numpy as np

from tasks.common.errors import DataError
from tasks.dataset.shards import ShardDataset, resized

FRAMES = "frames.npy"


def encode(frames: np.ndarray) -> bytes:
    """The pictures of one clip as npy bytes."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(frames, np.uint8), allow_pickle=False)
    return stream.getvalue()


def read(dataset: ShardDataset, size: int | None = None) -> np.ndarray:
    """The pictures of all clips, uint8 `[n, frames, size, size, 3]`; by default as large as they are stored.

    Raises DataError if they are not of one shape.
    """
    clips = [np.load(io.BytesIO(dataset.read(i, FRAMES)), allow_pickle=False) for i in range(len(dataset))]
    side = int(dataset.about["size"])
    shape = (int(dataset.about["frames"]), side, side, 3)
    for key, clip in zip(dataset.keys, clips, strict=True):
        if clip.shape != shape or clip.dtype != np.uint8:
            raise DataError(f"{dataset.folder}: the clip {key!r} has the shape {clip.shape} and not {shape}.")
    if size is not None and size != side:
        clips = [np.stack([resized(size, picture) for picture in clip]) for clip in clips]
    return np.array(clips, np.uint8).reshape(-1, shape[0], size or side, size or side, 3)
