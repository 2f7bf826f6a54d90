"""Stage `shard`: write the curated persons as WebDataset shards, with cropped pictures and normalised poses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from tqdm import tqdm

from tasks import paths
from tasks.common import files, machine
from tasks.common.errors import DataError
from tasks.common.images import encode_png
from tasks.common.pool import OrderedMap, WorkerDied
from tasks.config.params import Params
from tasks.config.text import TextEncoder
from tasks.dataset import dataset_table, shards
from tasks.dataset.crop import crop, real_part
from tasks.dataset.dataset_table import SPLITS, Persons
from tasks.dataset.source_pictures import pictures
from tasks.extract import parts
from tasks.extract.source_files import Refusal
from tasks.text.encoder import embeddings

_FEW = 200  # files; for fewer, starting worker processes takes longer than reading them here


@dataclass(frozen=True)
class _File:
    """The crops of one file: for each person the frame and the square (x0, y0, side)."""

    source: str
    kind: str
    frames: list[int]
    squares: np.ndarray  # int32 [n, 3]


def run(params: Params, root: Path) -> None:
    """Write one sample per person to `data/shards/`: `png` (square crop), `pose.npy` (float32 [33, 3]), `json` (metadata).

    A caption is `caption` in the metadata. With `shard.text` the embeddings of the captions are in `text.npy`.
    If the square reaches beyond the picture, `real` in the metadata says which part of the crop the picture covers.

    A person without a picture (motion capture) is a sample without `png`. A file with several persons, or a video, is
    opened once. The bytes do not depend on the number of processes. Raises DataError if a file was removed or changed
    after extraction, or if a worker process dies.
    """
    persons = dataset_table.read(root / paths.DATASET)
    opened = [file for split in SPLITS for file in _files(persons, persons.of(split))]
    about = {
        "categories": sorted(set(persons.category)),
        "parts": sorted(params.raw.parts),
        "size": params.shard.size,
        "margin": params.curate.margin,
    }
    captions = _captions(root)
    embedded = _embedded(root, params.shard.text, persons, captions) if params.shard.text is not None else None
    if embedded is not None:
        about["text"] = embedded.about
    cutter = partial(_cutter, parts.SourcePaths(root, params.raw), params.shard.size)
    bar = tqdm(total=len(persons), desc="shard", unit="person", mininterval=1)
    with bar, _cut(cutter, opened) as cut:
        shards.write(
            root / paths.SHARDS,
            {split: _samples(persons, persons.of(split), cut, bar, captions) for split in SPLITS},
            params.shard.samples_per_shard,
            about,
            embedded.embeddings if embedded is not None else None,
        )


def _captions(root: Path) -> dict[str, str]:
    """The captions of the pictures that have one, by source."""
    path = root / paths.DATASET / parts.CAPTIONS
    return files.read_json(path) if path.is_file() else {}


class _Embedded(NamedTuple):
    """Embeddings of captions, float32 `[m, length, width]`, and what the index says about them."""

    embeddings: np.ndarray
    about: dict[str, Any]


def _embedded(root: Path, config: TextEncoder, persons: Persons, captions: dict[str, str]) -> _Embedded:
    """The embeddings of all captions, and of the template with each category, which samplers use."""
    every = {shards.captioned(config.template, category) for category in persons.category}
    every |= {captions[source] for source in persons.source if source in captions}
    ordered = sorted(every)
    table = embeddings(root, config, ordered)
    return _Embedded(table, {**config.model_dump(), "width": table.shape[2], "captions": ordered})


def _files(persons: Persons, rows: list[int]) -> Iterator[_File]:
    """The files of the rows of one split, in order of the rows. Rows without a picture are left out."""
    pictured = persons.pictured
    for source, run in groupby((i for i in rows if pictured[i]), key=persons.source.__getitem__):
        same = list(run)
        yield _File(source, persons.source_kind[same[0]], persons.frame[same].tolist(), persons.crop[same])


_Crop = tuple[bytes, tuple[float, float, float, float] | None]  # PNG, and `real_part`
_Cutter = Callable[[], AbstractContextManager[Callable[[_File], list[_Crop]]]]


@contextmanager
def _cutter(place: parts.SourcePaths, size: int) -> Iterator[Callable[[_File], list[_Crop]]]:
    """The function from a file to its persons' crops."""

    def cut(file: _File) -> list[_Crop]:
        places = [(file.source, file.kind, frame) for frame in file.frames]
        try:
            whole = pictures(place, places)
            return [
                (
                    encode_png(crop(picture, x0, y0, side, size)),
                    real_part(picture.shape[0], picture.shape[1], x0, y0, side),
                )
                for picture, (x0, y0, side) in zip(whole, file.squares.tolist(), strict=True)
            ]
        except Refusal as refusal:
            raise DataError(
                f"{place(file.source)} can no longer be read ({refusal.reason}: {refusal.detail}); "
                "run the extract stage."
            ) from refusal

    yield cut


@contextmanager
def _cut(cutter: _Cutter, opened: list[_File]) -> Iterator[Iterator[_Crop]]:
    """The crops of all files in order; for many files by several processes."""
    if len(opened) < _FEW:
        with cutter() as cut:
            yield chain.from_iterable(map(cut, opened))
        return
    done = OrderedMap(cutter, opened, machine.cores())
    try:
        yield chain.from_iterable(done)
    except WorkerDied as error:
        raise DataError(
            f"A worker process died (exit code {error.exit_code}) on {error.item.source}. Remove the file, or give the "
            "machine more memory, and run again."
        ) from error
    finally:
        done.close()


def _samples(
    persons: Persons, rows: list[int], cut: Iterator[_Crop], bar: tqdm[NoReturn], captions: dict[str, str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of one split. `cut` yields the crops of all rows that have one, and is advanced past them."""
    pictured = persons.pictured
    for i in rows:
        about = {name: getattr(persons, name)[i] for name in ("source", "category", "group", "split")}
        if caption := captions.get(persons.source[i]):
            about["caption"] = caption
        members = {}
        if pictured[i]:
            members["png"], real = next(cut)
            about["side"] = int(persons.crop[i, 2])  # pixels of the square before it was resized
            if real is not None:
                about["real"] = real
        members |= {"pose.npy": shards.encode_pose(persons.pose[i]), "json": shards.encode_json(about)}
        yield persons.key[i], members
        bar.update()
