"""Open again the pictures that the rows of a dataset were read from: picture files, and frames of videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from tasks.extract import video
from tasks.extract.decode import open_picture
from tasks.extract.findings import Kind
from tasks.extract.source_files import open_regular

Place = tuple[str, str, int]  # source, kind, frame


def pictures(file_of: Callable[[str], Path], places: Iterable[Place]) -> Iterator[np.ndarray]:
    """The picture of each place, RGB uint8 `[height, width, 3]`, in the order given.

    `file_of` gives the file of a source. Consecutive places in one file open it once; their frames must ascend. Raises
    Refusal if a file can no longer be read.
    """
    for (source, kind), run in groupby(places, key=lambda place: place[:2]):
        frames = [frame for _, _, frame in run]
        if kind == Kind.PICTURE:
            yield from [open_picture(file_of(source))] * len(frames)
        else:
            with open_regular(file_of(source)) as file:
                decoded = video.numbered(file, sorted(set(frames)))
                for _, same in groupby(frames):
                    picture = next(decoded).picture
                    yield from [picture for _ in same]
