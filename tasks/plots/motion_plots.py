"""Pictures of motion: strips of frames, and looping pictures. Clips are those of `tasks.common.motion`.

The camera follows the person along the floor and looks from the person's right, a little from above. Marks on the floor, one
torso length apart, show how the person moves over it, and whether feet slide.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from tasks.common import motion
from tasks.common.subset import evenly_spaced
from tasks.plots import drawing

YAW, PITCH = 0.6, 0.2  # radians of the camera
EXTENT = 2.5  # torso lengths from the middle of the picture to its edge
FEET = (27, 28, 29, 30, 31, 32)
MARKS = 4  # rows of marks on each side of the person


def frame(clip: np.ndarray, number: int, size: int = 128) -> np.ndarray:
    """One frame of a clip `[frames, 33, 3]`, uint8 `[size, size, 3]`."""
    pose = clip[number]
    camera = motion.middle_of_hips(pose) * [1, 0, 1]
    floor = clip[:, FEET, 1].max()
    near = np.round(camera)
    steps = np.arange(-MARKS, MARKS + 1)
    marks = np.stack(np.meshgrid(near[0] + steps, [floor], near[2] + steps, indexing="ij"), axis=-1).reshape(-1, 3)
    points, depth = _seen(pose - camera)
    dots, _ = _seen(marks - camera)
    visible = (np.abs(marks - camera)[:, [0, 2]] <= MARKS - 0.5).all(axis=1)
    return drawing.draw_joints(points, depth, size, dots[visible])


def _seen(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points `[n, 3]` as fractions of the picture `[n, 2]`, and their depth `[n]`."""
    x, y, z = np.moveaxis(points, -1, 0)
    right, away = np.cos(YAW) * x + np.sin(YAW) * z, np.cos(YAW) * z - np.sin(YAW) * x
    down, depth = np.cos(PITCH) * y - np.sin(PITCH) * away, np.cos(PITCH) * away + np.sin(PITCH) * y
    return (np.stack([right, down], axis=-1) / EXTENT + 1) / 2, depth


def strip(clip: np.ndarray, frames: int = 12, size: int = 96) -> list[np.ndarray]:
    """At most `frames` evenly spaced frames of a clip."""
    return [frame(clip, number, size) for number in evenly_spaced(len(clip), frames)]


def strips(clips: np.ndarray, captions: Sequence[str] | None = None, frames: int = 12, size: int = 96) -> np.ndarray:
    """A sheet with a row for each clip; a caption stands under the first frame of its row."""
    rows = [strip(clip, frames, size) for clip in clips]
    texts = None
    if captions is not None:
        texts = [
            text for caption, row in zip(captions, rows, strict=True) for text in (caption, *[""] * (len(row) - 1))
        ]
    return drawing.sheet([tile for row in rows for tile in row], len(rows[0]), texts)


def looping(
    clips: np.ndarray, rate: float, columns: int, captions: Sequence[str] | None = None, size: int = 128
) -> bytes:
    """An animated WebP that repeats for ever: clips `[n, frames, 33, 3]` side by side at `rate` frames a second."""
    return animated(
        [
            Image.fromarray(drawing.sheet([frame(clip, number, size) for clip in clips], columns, captions))
            for number in range(clips.shape[1])
        ],
        rate,
    )


def animated(pictures: Sequence[Image.Image], rate: float) -> bytes:
    """Pictures as an animated WebP that repeats for ever, at `rate` frames a second."""
    stream = io.BytesIO()
    pictures[0].save(
        stream,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / rate),
        loop=0,
        quality=80,
        method=2,
    )
    return stream.getvalue()
