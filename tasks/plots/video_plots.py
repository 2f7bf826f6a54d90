"""Pictures of clips of pictures `[n, frames, size, size, 3]`: strips of frames, and looping pictures beside their poses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tasks.common.subset import evenly_spaced
from tasks.dataset.pose_map import places
from tasks.plots import drawing, motion_plots


def strips(clips: np.ndarray, captions: Sequence[str], most: int = 8, size: int = 96) -> np.ndarray:
    """A sheet with a row of at most `most` frames for each clip; a caption stands under the first frame of its row."""
    chosen = evenly_spaced(clips.shape[1], most)
    tiles = [drawing.enlarge(clip[i], size) for clip in clips for i in chosen]
    texts = [text for caption in captions for text in (caption, *[""] * (len(chosen) - 1))]
    return drawing.sheet(tiles, len(chosen), texts)


def beside_poses(
    clips: np.ndarray, poses: np.ndarray, margin: float, columns: int, captions: Sequence[str], size: int = 128
) -> list[np.ndarray]:
    """A sheet for each frame, in which every clip stands beside the pose that it was to show, `[n, frames, 33, 3]`."""
    at = places(poses, margin)
    sheets = []
    for frame in range(clips.shape[1]):
        tiles = [
            np.concatenate(
                [
                    drawing.draw_joints(at[i, frame], poses[i, frame, :, 2], size),
                    drawing.smooth(clips[i, frame], size),
                ],
                axis=1,
            )
            for i in range(len(clips))
        ]
        sheets.append(drawing.sheet(tiles, columns, captions))
    return sheets


def looping(sheets: Sequence[np.ndarray], rate: float) -> bytes:
    """An animated WebP of these pictures that repeats for ever, at `rate` frames a second."""
    return motion_plots.animated([Image.fromarray(sheet) for sheet in sheets], rate)


def even(picture: np.ndarray) -> np.ndarray:
    """The picture without its last row or column if their number is odd, as videos need it."""
    height, width = (length - length % 2 for length in picture.shape[:2])
    return picture[:height, :width]
