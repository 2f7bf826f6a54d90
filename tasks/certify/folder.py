"""Reads folders of pictures through the decoders of extraction: every file becomes an item of the copy test or a refusal."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from tasks.common import machine
from tasks.common.errors import DataError, UserError
from tasks.common.files import check_folder
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.common.thumbnail import SIDE, content
from tasks.extract.decode import decode
from tasks.extract.findings import Reason
from tasks.extract.scan import is_ignored, walk
from tasks.extract.source_files import Refusal, content_key, open_regular, printable

MIN_SIDE = 32  # pixels of the shorter side
TIME_LIMIT = 60.0  # seconds for one file
# What trainers put beside pictures. Such files are counted and not read.
SIDE_SUFFIXES = frozenset({
    ".txt", ".caption", ".json", ".jsonl", ".csv", ".md", ".html", ".toml", ".yaml", ".yml", ".npz", ".npy", ".parquet", ".log",
    ".safetensors", ".pt", ".ckpt",
})  # fmt: skip


@dataclass(frozen=True)
class Rejected:
    """A file that is no picture for the test, with the reason of the extraction gate's closed list."""

    name: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Pictures:
    """The pictures of one folder, in order of their names."""

    folder: Path
    names: list[str]  # relative to the folder
    keys: list[str]  # content hashes of the files
    items: np.ndarray  # uint8 [n, 48, 48, 4], see `letterboxed`
    shortest: int  # the smallest longer side of any picture, in pixels
    rejected: list[Rejected]
    skipped: int  # files beside the pictures, such as captions

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """sha256 of all names and content hashes: the same pictures under the same names have the same digest."""
        lines = "".join(f"{key} {name}\n" for name, key in zip(self.names, self.keys, strict=True))
        return hashlib.sha256(lines.encode()).hexdigest()

    def picture(self, i: int) -> np.ndarray:
        """Picture `i` at its full size, uint8 `[height, width, 3]`. Raises Refusal if its file has changed since."""
        with open_regular(self.folder / self.names[i]) as file:
            return decode(file, MIN_SIDE)


def letterboxed(side: int, picture: np.ndarray) -> np.ndarray:
    """A picture, uint8 `[h, w, 3]`, in its proportions in the middle of a square: uint8 `[side, side, 4]`.

    The rest of the square has the picture's mean colour. The fourth channel is 255 inside of the picture, and 0 outside.
    """
    image = Image.fromarray(picture)
    unit = side / SIDE
    width, height = (round(unit * pixels) for pixels in content(*image.size))
    scale = max(image.size) / side
    kept = [min(float(old), new * scale) for old, new in zip(image.size, (width, height), strict=True)]
    left, top = ((old - new) / 2 for old, new in zip(image.size, kept, strict=True))
    resample = Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC
    small = np.asarray(image.resize((width, height), resample, box=(left, top, left + kept[0], top + kept[1])))
    square = np.zeros((side, side, 4), np.uint8)
    square[..., :3] = np.rint(small.mean(axis=(0, 1)))
    x, y = (side - width) // 2, (side - height) // 2
    square[y : y + height, x : x + width, :3] = small
    square[y : y + height, x : x + width, 3] = 255
    return square


# What a worker gives for a file: its content hash, its longer side, and its item; or a refusal as (reason, detail).
_Answer = tuple[str, int, np.ndarray] | tuple[str, str]


@contextmanager
def _reader() -> Iterator[Callable[[tuple[Path, str]], _Answer]]:
    """What a worker process does with one (folder, name)."""

    def read(place: tuple[Path, str]) -> _Answer:
        folder, name = place
        try:
            with open_regular(folder / name) as file:
                key = content_key(file)
                picture = decode(file, MIN_SIDE)
                return key, max(picture.shape[:2]), letterboxed(SIDE, picture)
        except Refusal as refusal:
            return refusal.reason.value, refusal.detail

    yield read


def _lost(death: WorkerDied) -> _Answer:
    if death.exit_code is None:
        return Reason.TOO_SLOW.value, f"its decoder made no progress for {TIME_LIMIT:.0f} s"
    return Reason.CRASHED.value, f"its decoder crashed twice (exit code {death.exit_code})"


def names_in(folder: Path) -> tuple[list[str], int]:
    """The files of a folder that may be pictures, in order, and how many others there are.

    Raises UserError if there is no such folder, DataError if it holds none.
    """
    check_folder(folder)
    paths = sorted(entry.path for entry in walk(folder))
    if "" in paths:
        raise UserError(f"The folder {folder} cannot be listed; check its permissions.")
    files = [path for path in paths if not is_ignored(path.split("/")[-1])]
    pictures = [path for path in files if os.path.splitext(path)[1].lower() not in SIDE_SUFFIXES]
    if not pictures:
        raise DataError(f"The folder {folder} holds no picture.")
    return pictures, len(files) - len(pictures)


def read(folders: Sequence[Path]) -> list[Pictures]:
    """The pictures of all folders, read on all cores under one progress bar; a file that crashes its decoder stops nothing.

    Raises UserError if a folder is missing, DataError if one is empty.
    """
    listed = [names_in(folder) for folder in folders]
    places = [(folder, name) for folder, (names, _) in zip(folders, listed, strict=True) for name in names]
    answers = OrderedMap(partial(_reader), places, min(machine.cores(), len(places)), _lost, TIME_LIMIT)
    read = []
    with closing(answers), tqdm(total=len(places), desc="read", unit="file", mininterval=0.5) as bar:
        for folder, (names, skipped) in zip(folders, listed, strict=True):
            kept: list[tuple[str, str, int, np.ndarray]] = []
            rejected = []
            for name in names:
                answer = next(answers)
                bar.update()
                if len(answer) == 3:
                    kept.append((name, *answer))
                else:
                    rejected.append(Rejected(printable(name), *answer))
            read.append(
                Pictures(
                    folder,
                    [name for name, *_ in kept],
                    [key for _, key, *_ in kept],
                    np.array([item for *_, item in kept], np.uint8).reshape(-1, SIDE, SIDE, 4),
                    min((longer for _, _, longer, _ in kept), default=0),
                    rejected,
                    skipped,
                )
            )
    return read
