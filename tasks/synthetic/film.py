"""Stage `film`: the built-in motion in pictures, clips of a mannequin drawn frame by frame.

Writes `data/film/`:

    frames.npy   uint8 [clips, frames, size, size, 3]
    joints.npy   float32 [clips, frames, 33, 3]: MediaPipe's 33 landmarks in metres, with the camera's axes and the path
    clips.json   rate (frames per second), and for each clip its category

The movements are those of the stage `animate`, each from a moment of its own. The camera goes along with the figure, and the
square of the picture follows the hips as in `tasks.dataset.pose_map`. Every clip is a pure function of (seed, index, frames,
rate, size, margin).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks import paths
from tasks.common import files, motion
from tasks.common.skeleton import mirror
from tasks.config.params import Params
from tasks.dataset.crop import square
from tasks.synthetic.animate import all_clips, drawn
from tasks.synthetic.body import dress, landmarks
from tasks.synthetic.figure import rotation
from tasks.synthetic.movements import skeleton
from tasks.synthetic.render import Camera, render
from tasks.synthetic.stage import random_light, random_outfit, random_room, random_yaw

_STREAM = 2  # apart from the pictures and the motion of the same seed
_LATEST = 1.4  # seconds: the latest moment of a movement at which a clip begins
_FOCAL = 1000.0  # of the picture in which the square is chosen, pixels


class Shape(NamedTuple):
    """What clips are like: frames, frames per second, pixels along the side, and the margin around the person."""

    frames: int
    rate: float
    size: int
    margin: float


class Filmed(NamedTuple):
    """A clip: `frames` uint8 `[frames, size, size, 3]`, `joints` float32 `[frames, 33, 3]` in metres."""

    category: str
    frames: np.ndarray
    joints: np.ndarray


def run(params: Params, root: Path) -> None:
    """Draw the clips of `params.video.film`. The bytes do not depend on the number of workers.

    Raises DataError if a worker process dies.
    """
    film, clips = params.video.film, params.video.clips
    shape = Shape(clips.frames, clips.rate, clips.size, params.curate.margin)
    with files.new_folder(root / paths.FILM) as folder:
        arrays = {
            "frames.npy": (np.uint8, (film.count, clips.frames, clips.size, clips.size, 3)),
            "joints.npy": (np.float32, (film.count, clips.frames, 33, 3)),
        }
        for name, (kind, size) in arrays.items():
            np.lib.format.open_memmap(folder / name, "w+", kind, size).flush()
        about = all_clips(partial(_artist, folder, film.seed, shape), film.count, "film")
        files.write_json(folder / "clips.json", {"rate": clips.rate, "clips": about})


@contextmanager
def _artist(folder: Path, seed: int, shape: Shape) -> Iterator[Callable[[int], dict[str, Any]]]:
    """In a worker: the function that draws one clip into the files, and returns the rest as JSON."""
    frames, joints = (np.lib.format.open_memmap(folder / f"{name}.npy", "r+") for name in ("frames", "joints"))

    def draw(index: int) -> dict[str, Any]:
        clip = filmed(seed, index, shape)
        frames[index], joints[index] = clip.frames, clip.joints
        frames.flush()
        joints.flush()
        return {"category": clip.category}

    yield draw


def filmed(seed: int, index: int, shape: Shape) -> Filmed:
    """Clip `index` of the data set `seed`."""
    category, body, movement, mirrored, _ = drawn(seed, index)
    rng = np.random.default_rng([seed, index, _STREAM])
    outfit, yaw = random_outfit(rng), random_yaw(rng)
    distance, height, pitch = rng.uniform(3, 5.5), rng.uniform(0.7, 1.6), rng.uniform(-4, 8)
    tilt = rotation(0, pitch)
    turn, feet, up = tilt @ rotation(1, -yaw), tilt @ np.array([0, height, distance]), tilt @ np.array([0.0, -1, 0])
    light, room = random_light(rng, up), random_room(rng, up, feet, distance)
    times = rng.uniform(0, _LATEST) + np.arange(shape.frames) / shape.rate
    moments = [skeleton(body, movement(float(time))) for time in times]
    world = np.stack([landmarks(body, parts) for parts in moments])
    path = motion.middle_of_hips(world) * [1, 0, 1]  # along the floor; the camera goes along with it
    pixels = Camera(_FOCAL, (0.0, 0.0), shape.size).project((world - path[:, None]) @ turn.T + feet)
    hips = motion.middle_of_hips(pixels)
    x0, y0, side = square(pixels - hips[:, None], shape.margin)
    scale = shape.size / side
    frames = []
    for parts, place, middle in zip(moments, path, hips, strict=True):
        left, top = (-scale * (middle + np.array([x0, y0]))).tolist()
        camera = Camera(_FOCAL * scale, (left, top), shape.size)
        frames.append(render(dress(body, parts, outfit).moved(turn, feet - turn @ place), camera, light, room)[0])
    joints = world @ turn.T
    shown = np.stack(frames)
    return Filmed(
        category, shown[:, :, ::-1] if mirrored else shown, (mirror(joints) if mirrored else joints).astype(np.float32)
    )
