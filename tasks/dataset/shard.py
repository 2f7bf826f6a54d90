"""Stage `shard`: the curated persons as WebDataset shards in `data/shards/`, pictures cropped and poses normalised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tasks import paths
from tasks.common import machine
from tasks.common.errors import DataError
from tasks.common.images import encode_png
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.config.params import Params
from tasks.dataset import dataset_table, shards
from tasks.dataset.crop import crop
from tasks.dataset.dataset_table import SPLITS, Persons
from tasks.dataset.source_pictures import pictures
from tasks.extract import parts
from tasks.extract.decode import Refusal

_FEW = 200  # files that are sooner read here than by processes that have to be started


@dataclass(frozen=True)
class _File:
    """What is to be cut from one file: for each person the frame and the square (x0, y0, side)."""

    source: str
    kind: str
    frames: list[int]
    squares: np.ndarray  # int32 [n, 3]


def run(params: Params, root: Path) -> None:
    """Write the shards; one sample a person: `png` (square crop), `pose.npy` (float32 [33, 3]), `json` (who it is).

    A person without a picture (motion capture) is a sample without `png`. A file with several persons, or a video, is
    opened once. The bytes do not depend on the number of processes. Raises DataError if a file has gone or changed since
    it was extracted, or if a process dies on one.
    """
    persons = dataset_table.read(root / paths.DATASET)
    opened = [file for split in SPLITS for file in _files(persons, persons.of(split))]
    about = {
        "categories": sorted(set(persons.category)),
        "parts": sorted(params.raw.parts),
        "size": params.shard.size,
        "margin": params.curate.margin,
    }
    cutter = partial(_cutter, parts.Places(root, params.raw), params.shard.size)
    bar = tqdm(total=len(persons), desc="shard", unit="person", mininterval=1)
    with bar, _cut(cutter, opened) as cut:
        shards.write(
            root / paths.SHARDS,
            {split: _samples(persons, persons.of(split), cut, bar) for split in SPLITS},
            params.shard.samples_per_shard,
            about,
        )


def _files(persons: Persons, rows: list[int]) -> Iterator[_File]:
    """Rows of one split with a picture, file by file, in their order."""
    seen = persons.pictured
    for source, run in groupby((i for i in rows if seen[i]), key=persons.source.__getitem__):
        same = list(run)
        yield _File(source, persons.source_kind[same[0]], persons.frame[same].tolist(), persons.crop[same])


@contextmanager
def _cutter(place: parts.Places, size: int) -> Iterator[Callable[[_File], list[bytes]]]:
    """The function from a file to its persons' pictures as PNG."""

    def cut(file: _File) -> list[bytes]:
        places = [(file.source, file.kind, frame) for frame in file.frames]
        try:
            shown = pictures(place, places)
            return [
                encode_png(crop(picture, x0, y0, side, size))
                for picture, (x0, y0, side) in zip(shown, file.squares.tolist(), strict=True)
            ]
        except Refusal as refusal:
            raise DataError(
                f"{place(file.source)} cannot be read any more ({refusal.reason}: {refusal.detail}); "
                "run the extract stage."
            ) from refusal

    yield cut


@contextmanager
def _cut(cutter: Callable, opened: list[_File]) -> Iterator[Iterator[bytes]]:
    """The pictures of all files in order, as PNG."""
    if len(opened) < _FEW:
        with cutter() as cut:
            yield chain.from_iterable(map(cut, opened))
        return
    done = OrderedMap(cutter, opened, machine.cores())
    try:
        yield chain.from_iterable(done)
    except WorkerDied as error:
        raise DataError(
            f"A worker process died (exit code {error.exit_code}) on {error.item.source}; take the file away, or give the "
            "machine more memory, and run again."
        ) from error
    finally:
        done.close()


def _samples(
    persons: Persons, rows: list[int], cut: Iterator[bytes], bar: tqdm
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of one split; `cut` holds the pictures of those that have one, and is advanced past them."""
    seen = persons.pictured
    for i in rows:
        about = {name: getattr(persons, name)[i] for name in ("source", "category", "group", "split")}
        members = {"pose.npy": shards.encode_pose(persons.pose[i]), "json": shards.encode_json(about)}
        yield persons.key[i], {"png": next(cut), **members} if seen[i] else members
        bar.update()
