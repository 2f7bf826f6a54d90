"""The two peers of `benchmarks.extraction`: standby processes that are measured for a second or two at a time."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import TracebackType
from typing import Any

from tasks.common import machine
from tasks.extract.decode import open_picture

PICTURES = 40  # pictures per measurement and process


class Peers:
    """A plain loop, and one process per core that only finds landmarks. A context manager."""

    def __init__(self, paths: Sequence[Path], model: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        barrier = context.Barrier(machine.cores())
        for _ in range(machine.cores()):
            ours, theirs = context.Pipe()
            process = context.Process(target=_stand_by, args=(theirs, barrier, str(model)), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()  # it is ready
        shuffled = random.Random(0).sample(paths, len(paths))
        self._paths = itertools.cycle(shuffled)

    def look(self) -> dict[str, float]:
        """Pictures per second of the plain loop and of the limit, on different pictures each time."""
        return {"plain": self._rate(_plain, self._pipes[:1]), "limit": self._rate(_inference, self._pipes)}

    def _rate(self, function: Any, pipes: list[Any]) -> float:
        for pipe in pipes:
            pipe.send((function, list(map(str, itertools.islice(self._paths, PICTURES + 1)))))
        return sum(PICTURES / float(pipe.recv()) for pipe in pipes)

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()


def _stand_by(pipe: Connection, barrier: Barrier, model: str) -> None:
    from mediapipe.tasks.python import BaseOptions, vision

    from tasks.extract.landmarker import kept_offline

    options = vision.PoseLandmarkerOptions(base_options=BaseOptions(model_asset_path=model))
    with kept_offline(), vision.PoseLandmarker.create_from_options(options) as landmarker:
        pipe.send("ready")
        while True:
            try:
                function, paths = pipe.recv()
            except EOFError:
                return
            pipe.send(function(landmarker, paths, barrier))


def _plain(landmarker: Any, paths: list[str], barrier: Barrier) -> float:
    """The obvious loop: seconds for all pictures but the first."""
    from mediapipe import Image

    landmarker.detect(Image.create_from_file(paths[0]))
    began = time.perf_counter()
    for path in paths[1:]:
        landmarker.detect(Image.create_from_file(path))
    return time.perf_counter() - began


def _inference(landmarker: Any, paths: list[str], barrier: Barrier) -> float:
    """Only finding landmarks, in parallel with the others: seconds for all pictures but the first."""
    from mediapipe import Image, ImageFormat

    pictures = [Image(ImageFormat.SRGB, open_picture(Path(path))) for path in paths]
    landmarker.detect(pictures[0])
    barrier.wait()
    began = time.perf_counter()
    for picture in pictures[1:]:
        landmarker.detect(picture)
    return time.perf_counter() - began
