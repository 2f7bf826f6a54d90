"""Stage `animate`: the built-in motion, clips of an articulated figure whose joints are known in every frame.

Writes `data/animation/`:

    joints.npy   float32 [clips, frames, 33, 3]: MediaPipe's 33 landmarks in metres, in the world of `tasks.synthetic.figure`
    clips.json   rate (frames per second), and for each clip its category and body (see `figure.Body`)

Clip i is of category i modulo the number of categories; half of the clips are mirrored. Every clip is a pure function of (seed,
index, seconds, rate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from tasks import paths
from tasks.common import files, machine
from tasks.common.errors import DataError
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.common.skeleton import mirror
from tasks.config.params import Params
from tasks.synthetic.body import landmarks
from tasks.synthetic.figure import Body, rotation
from tasks.synthetic.movements import MOVEMENTS, Movement, skeleton
from tasks.synthetic.stage import random_body

_STREAM = 1  # apart from the pictures of the same seed


class Animated(NamedTuple):
    """A clip: `joints` float32 `[frames, 33, 3]` in metres."""

    category: str
    body: Body
    joints: np.ndarray


def run(params: Params, root: Path) -> None:
    """Animate the clips of `params.motion.animation`. The bytes do not depend on the number of workers.

    Raises DataError if a worker process dies.
    """
    settings = params.motion.animation
    shape = (settings.count, round(settings.seconds * settings.rate) + 1, 33, 3)
    with files.new_folder(root / paths.ANIMATION) as folder:
        path = folder / "joints.npy"
        np.lib.format.open_memmap(path, "w+", np.float32, shape).flush()
        animator = partial(_animator, path, settings.seed, settings.seconds, settings.rate)
        clips = all_clips(animator, settings.count, "animate")
        files.write_json(folder / "clips.json", {"rate": settings.rate, "clips": clips})


def all_clips(
    worker: Callable[[], AbstractContextManager[Callable[[int], dict[str, Any]]]], count: int, label: str
) -> list[dict[str, Any]]:
    """What the workers return of clips 0 ... count - 1, in order. Raises DataError if a worker process dies."""
    work = OrderedMap(worker, range(count), machine.cores())
    with closing(work):
        try:
            return list(tqdm(work, total=count, desc=label, unit="clip", mininterval=1))
        except WorkerDied as error:
            raise DataError(
                f"A worker process died (exit code {error.exit_code}) while drawing clip {error.item}; "
                "give the machine more memory and run again."
            ) from error


@contextmanager
def _animator(path: Path, seed: int, seconds: float, rate: float) -> Iterator[Callable[[int], dict[str, Any]]]:
    """In a worker: the function that animates one clip, writes its joints into the file, and returns the rest as JSON."""
    joints = np.lib.format.open_memmap(path, "r+")

    def animate(index: int) -> dict[str, Any]:
        clip = animated(seed, index, seconds, rate)
        joints[index] = clip.joints
        joints.flush()
        return {
            "category": clip.category,
            "body": {name: round(value, 6) for name, value in asdict(clip.body).items()},
        }

    yield animate


def animated(seed: int, index: int, seconds: float, rate: float) -> Animated:
    """Clip `index` of the data set `seed`, from 0 to `seconds` at `rate` frames per second."""
    category, body, movement, mirrored, facing = drawn(seed, index)
    times = np.arange(round(seconds * rate) + 1) / rate
    joints = np.stack([landmarks(body, skeleton(body, movement(float(time)))) for time in times])
    joints = mirror(joints) if mirrored else joints
    return Animated(category, body, (joints @ rotation(1, -facing).T).astype(np.float32))


def drawn(seed: int, index: int) -> tuple[str, Body, Movement, bool, float]:
    """What clip `index` is: category, body, movement, whether it is mirrored, and how far the figure is turned (degrees)."""
    rng = np.random.default_rng([seed, index, _STREAM])
    category = list(MOVEMENTS)[index % len(MOVEMENTS)]
    body = random_body(rng)
    movement = MOVEMENTS[category](body, rng)
    return category, body, movement, bool(rng.random() < 0.5), float(rng.uniform(-180, 180))
