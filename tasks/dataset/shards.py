"""Shards: WebDataset tars with reproducible bytes, and an index to read any sample of them.

    folder/{split}-000000.tar   members `key.png` (not for motion captures), `key.pose.npy` (float32 [33, 3]), `key.json`;
                                of motion `key.clip.npy` (float32 [frames, 33, 3], see tasks.common.motion) and `key.json`
    folder/text.npy             float32 [m, length, width], the embeddings of captions, if there is a text encoder
    folder/index.json           size and sha256 of each shard; with {split}.jsonl and {split}.offsets the index of the samples,
                                see tasks.dataset.shard_index

WebDataset can stream the tars from anywhere. With the index they are a random-access dataset, so that the order of
training is a function of (seed, image count) alone and not of the division into files.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tarfile
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.images import area_average
from tasks.common.lazy import Lazy
from tasks.dataset import remote_shards, shard_index
from tasks.dataset.remote_shards import TEXT, Source
from tasks.dataset.shard_index import Members, SplitIndex, SplitWriter, UniqueKeys

PICTURE_ROWS = 1024  # pictures in memory at once
OPEN = 64  # tars that a process keeps open
ROWS = 1 << 20  # sample numbers hashed at a time
T = TypeVar("T")


def encode_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def encode_pose(pose: np.ndarray) -> bytes:
    """One pose `[33, 3]` or clip `[frames, 33, 3]` as npy bytes, float32."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(pose, dtype=np.float32), allow_pickle=False)
    return stream.getvalue()


def _index_of(path: Path) -> list[tuple[str, Members]]:
    """The samples of a tar in order: key and, for each extension, (offset, size) of its bytes."""
    samples: dict[str, Members] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
    return list(samples.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _written(path: Path, split: str, rows: SplitWriter) -> dict[str, Any]:
    """Append the samples of a finished shard to the index of its split; returns the shard's entry in index.json."""
    samples = _index_of(path)
    for key, members in samples:
        rows.add(key, members)
    return {
        "name": path.name, "split": split, "samples": len(samples), "bytes": path.stat().st_size, "sha256": _sha256(path),
    }  # fmt: skip


def _chunks(rows: Iterable[T], size: int) -> Iterator[Iterator[T]]:
    """The rows in runs of `size` without holding them in memory. Use up each run before taking the next."""
    iterator = iter(rows)
    for first in iterator:
        yield chain([first], islice(iterator, size - 1))


def write(
    folder: Path,
    splits: Mapping[str, Iterable[tuple[str, dict[str, bytes]]]],
    samples_per_shard: int,
    about: Mapping[str, Any],
    text: np.ndarray | None = None,
) -> dict[str, Any]:
    """Write the (key, {extension: bytes}) samples of each split into `folder`, and return its index.

    `about` is stored in the index (categories, origin of the samples). Memory does not grow with the number of samples but
    with those of one shard. `text`: the embeddings of the captions in `about["text"]["captions"]`, if there is a text
    encoder. The folder appears under its name only when it is
    complete. Raises ValueError if a key is not unique or contains a dot.
    """
    from webdataset import TarWriter  # imports torch, which readers do not need

    index: dict[str, Any] = {"format": shard_index.FORMAT, "about": dict(about), "shards": [], "splits": {}}
    with files.new_folder(folder) as temporary, closing(UniqueKeys(temporary)) as keys:
        for split, samples in splits.items():
            with SplitWriter(temporary, split) as rows:
                for part, chunk in enumerate(_chunks(samples, samples_per_shard)):
                    path = temporary / f"{split}-{part:06d}.tar"
                    with (
                        path.open("wb") as file,
                        TarWriter(file, mtime=0, user="contrapposto", group="contrapposto") as tar,
                    ):
                        inside: set[str] = set()
                        for key, members in chunk:
                            if key in inside or "." in key:
                                raise ValueError(f"sample key {key!r} is not unique or has a dot")
                            inside.add(key)
                            keys.add(key)
                            tar.write({"__key__": key, **members})
                    index["shards"].append(_written(path, split, rows))
                index["splits"][split] = rows.summary()
        opened = (SplitIndex(temporary, split, entry["samples"]) for split, entry in index["splits"].items())
        repeated = keys.repeated(rows.row(i)[0] for rows in opened for i in range(len(rows)))
        if repeated is not None:
            raise ValueError(f"sample key {repeated!r} is not unique")
        if text is not None:
            np.save(temporary / TEXT, np.ascontiguousarray(text, np.float32), allow_pickle=False)
        (temporary / shard_index.FILE).write_bytes(encode_json(index))
    return index


def readable(category: str) -> str:
    """The name of a category or folder as words."""
    return category.replace("_", " ").replace("-", " ").strip()


def captioned(template: str, category: str) -> str:
    """The caption of a picture that has none of its own."""
    return template.format(category=readable(category))


def resized(size: int, picture: np.ndarray) -> np.ndarray:
    """A picture, uint8 `[height, width, 3]`, averaged over areas to uint8 `[size, size, 3]`."""
    if picture.shape[:2] == (size, size):
        return picture
    if picture.shape[0] == picture.shape[1] > size:
        return area_average(picture, size)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


def _bytes(path: str) -> int | None:
    """The length of a file; None if there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None


class _Tars:
    """The shards of a dataset, of which a few are open. It can be pickled: a copy opens them again."""

    def __init__(self, paths: Sequence[str], shards: Sequence[Mapping[str, Any]], source: Source | None) -> None:
        self._paths, self._shards, self._source = paths, shards, source
        self._open: OrderedDict[int, int] = OrderedDict()  # number of the shard -> descriptor, the latest used last

    def __reduce__(self) -> tuple[type[_Tars], tuple[Any, ...]]:
        return _Tars, (self._paths, self._shards, self._source)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """Some bytes of a shard."""
        if number not in self._open:
            if len(self._open) == OPEN:
                os.close(self._open.popitem(last=False)[1])
            if self._source is not None:
                self._source.fetch(self._shards[number], Path(self._paths[number]))
            self._open[number] = os.open(self._paths[number], os.O_RDONLY)
        self._open.move_to_end(number)
        return os.pread(self._open[number], size, offset)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


class ShardDataset:
    """Random access to the samples of one or several splits of a shard folder, the only reader of shards.

    `splits`: the names of all splits of the folder. Memory does not grow with the number of samples, except for the numbers
    that `take` is given. Raises DataError if the folder has no such split, its index is damaged or of an older version, or a
    tar has another length than its index says. `verify()` reads all bytes and compares their sha256. Tars that are in an object
    store (`remote_shards`) are fetched as they are needed.
    """

    def __init__(self, folder: Path, *splits: str) -> None:
        self.folder = folder
        index = shard_index.read(folder)
        for split in splits:
            if split not in index["splits"]:
                raise DataError(f"{folder} has no split {split!r}; it has {', '.join(index['splits'])}.")
        self.about: dict[str, Any] = index["about"]
        self.splits: list[str] = list(index["splits"])
        self._entries: dict[str, dict[str, Any]] = index["splits"]
        self._all_shards: list[dict[str, Any]] = index["shards"]
        self._shards = [shard for split in splits for shard in self._all_shards if shard["split"] == split]
        self._shard_starts = list(accumulate((shard["samples"] for shard in self._shards), initial=0))
        self._indices = [SplitIndex(folder, split, self._entries[split]["samples"]) for split in splits]
        self._split_starts = list(accumulate(map(len, self._indices), initial=0))
        self._rows: np.ndarray | None = None  # the samples that were taken, int64; None: all
        tars = [os.path.join(str(folder), shard["name"]) for shard in self._shards]
        self._source = remote_shards.source(folder)
        self._tars = _Tars(tars, self._shards, self._source)
        if self._shard_starts[-1] != self._split_starts[-1]:
            raise DataError(
                f"{folder}: the shards hold {self._shard_starts[-1]} samples, the index {self._split_starts[-1]}."
            )
        for tar, shard in zip(tars, self._shards, strict=True):
            length = _bytes(tar)
            if length != shard["bytes"] and not (length is None and self._source is not None):
                raise DataError(f"{tar} is missing or not {shard['bytes']} bytes long: it does not match its index.")

    def __len__(self) -> int:
        return self._split_starts[-1] if self._rows is None else len(self._rows)

    def _row(self, i: int) -> int:
        """The number of sample `i` among all samples of these splits."""
        return i if self._rows is None else int(self._rows[i])

    def _sample(self, row: int) -> tuple[str, Members]:
        split = bisect_right(self._split_starts, row) - 1
        return self._indices[split].row(row - self._split_starts[split])

    def key(self, i: int) -> str:
        """The key of sample `i`."""
        return self._sample(self._row(i))[0]

    @property
    def keys(self) -> Sequence[str]:
        """The sample keys in stored order, split after split. Each is read when it is looked at."""
        return Lazy(len(self), self.key)

    def digests(self) -> dict[str, str]:
        """The sha256 of the shards that hold samples of these splits, by name."""
        holding: set[int] = set()
        for rows in self._row_numbers():
            holding.update(np.unique(np.searchsorted(self._shard_starts, rows, side="right") - 1).tolist())
        return {self._shards[number]["name"]: self._shards[number]["sha256"] for number in sorted(holding)}

    def identity(self) -> str:
        """A digest of the samples and their order: of the shards' sha256, and of which of their samples these are."""
        content = [self.about, [shard["sha256"] for shard in self._shards]]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        for rows in self._row_numbers():
            digest.update(rows.astype("<i8").tobytes())
        return digest.hexdigest()

    def _row_numbers(self) -> Iterator[np.ndarray]:
        """The numbers of the samples, int64, a part at a time."""
        for start in range(0, len(self), ROWS):
            stop = min(start + ROWS, len(self))
            yield np.arange(start, stop) if self._rows is None else self._rows[start:stop]

    def pictured(self) -> ShardDataset:
        """The samples that have a picture (motion captures have none)."""
        if all(self._entries[one.split]["members"].get("png", 0) == len(one) for one in self._indices):
            return self
        having = (i for i in range(len(self)) if "png" in self._sample(self._row(i))[1])
        return self.take(np.fromiter(having, np.int64))

    def take(self, rows: Iterable[int] | np.ndarray) -> ShardDataset:
        """The samples with these numbers, in this order. Raises IndexError if there is no such sample."""
        chosen = np.array(rows if isinstance(rows, np.ndarray | Sequence) else list(rows), np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise IndexError(f"{self.folder} has samples 0 to {len(self) - 1}, not {chosen.min()} to {chosen.max()}")
        other = copy.copy(self)
        other._rows = chosen if self._rows is None else self._rows[chosen]
        return other

    def verify(self) -> None:
        """Compare every sha256 with index.json; raises DataError naming the first file that differs."""
        written = {shard["name"]: shard["sha256"] for shard in self._all_shards}
        written |= {f"{split}.jsonl": entry["sha256"] for split, entry in self._entries.items()}
        if self._source is not None:
            for shard in self._all_shards:
                self._source.fetch(shard, self.folder / shard["name"])
        for name, expected in written.items():
            digest = _sha256(self.folder / name)
            if digest != expected:
                raise DataError(f"{self.folder / name} is damaged: sha256 mismatch: expected {expected}, got {digest}.")

    def read(self, i: int, extension: str) -> bytes:
        """The bytes of one member of sample `i`; KeyError if the sample has no such member."""
        row = self._row(i)
        offset, size = self._sample(row)[1][extension]
        return self._tars.read(bisect_right(self._shard_starts, row) - 1, offset, size)

    def meta(self, i: int) -> dict[str, Any]:
        """The JSON of sample `i`."""
        value: dict[str, Any] = json.loads(self.read(i, "json"))
        return value

    def metas(self) -> Sequence[dict[str, Any]]:
        """The JSON of all samples. Each is read when it is looked at."""
        return Lazy(len(self), self.meta)

    def captions(self, template: str) -> list[str]:
        """The caption of every sample: its own, or else the template with its category."""
        return [meta.get("caption") or captioned(template, str(meta["category"])) for meta in self.metas()]

    def texts(self) -> np.ndarray:
        """The embedding of every sample's caption, float32 `[n, length, width]`. Raises DataError if there are none."""
        return self.texts_of(self.captions(self.text["template"]))

    def texts_of(self, captions: Sequence[str]) -> np.ndarray:
        """The embeddings of captions that the shards have, float32 `[n, length, width]`. Raises DataError for another one."""
        rows = {caption: i for i, caption in enumerate(self.text["captions"])}
        unknown = [caption for caption in captions if caption not in rows]
        if unknown:
            raise DataError(f"{self.folder} has no embedding of {unknown[0]!r}.")
        table = np.load(self.folder / TEXT, mmap_mode="r", allow_pickle=False)
        embeddings: np.ndarray = np.array(table[[rows[caption] for caption in captions]], np.float32)
        return embeddings

    @property
    def text(self) -> dict[str, Any]:
        """The text encoder of the shards and its captions. Raises DataError if they have none."""
        if "text" not in self.about:
            raise DataError(f"{self.folder} has no embeddings of captions: set shard.text and run the stage shard.")
        about: dict[str, Any] = self.about["text"]
        return about

    def categories(self) -> list[str]:
        """The categories of the samples, each once, sorted."""
        return sorted({str(meta["category"]) for meta in self.metas()})

    def poses(self) -> np.ndarray:
        """All poses, float32 `[n, 33, 3]`: hip-centred, torso-scaled world landmarks. DataError if one has another shape."""
        poses = np.zeros((len(self), 33, 3), np.float32)
        for i, key in enumerate(self.keys):
            pose = np.load(io.BytesIO(self.read(i, "pose.npy")), allow_pickle=False)
            if pose.shape != poses.shape[1:]:
                raise DataError(f"{self.folder}: the pose of {key!r} has the shape {pose.shape} and not (33, 3).")
            poses[i] = pose
        return poses

    def clips(self) -> np.ndarray:
        """All clips, float32 `[n, frames, 33, 3]`. Raises DataError if they are not of one shape."""
        clips = [np.load(io.BytesIO(self.read(i, "clip.npy")), allow_pickle=False) for i in range(len(self))]
        shape = clips[0].shape if clips else (int(self.about["frames"]), 33, 3)
        for key, clip in zip(self.keys, clips, strict=True):
            if clip.shape != shape or shape[1:] != (33, 3):
                raise DataError(f"{self.folder}: the clip {key!r} has the shape {clip.shape} and not {shape}.")
        return np.array(clips, np.float32).reshape(-1, *shape)

    def picture(self, i: int, size: int | None = None) -> np.ndarray:
        """Picture `i`, uint8 `[size, size, 3]`; by area averaging where `size` is smaller than stored."""
        with Image.open(io.BytesIO(self.read(i, "png")), formats=("PNG",)) as image:
            rgb = np.asarray(image.convert("RGB"))
            return rgb if size is None else resized(size, rgb)

    def sides(self) -> list[int]:
        """The pixels along the side of each picture's square in the photograph; where they are fewer, it was enlarged."""
        return [int(meta["side"]) for meta in self.metas()]

    def picture_blocks(
        self, size: int, count: int | None = None, rows: int = PICTURE_ROWS, begin: int = 0
    ) -> Iterator[np.ndarray]:
        """Of the first `count` pictures (default: all) those from number `begin`, at most `rows` at a time.

        uint8 `[r, size, size, 3]`.
        """
        total = len(self) if count is None else min(count, len(self))
        for start in range(begin, total, rows):
            yield np.stack([self.picture(i, size) for i in range(start, min(start + rows, total))])

    def pictures_uint8(self, size: int) -> np.ndarray:
        """All pictures, uint8 `[n, size, size, 3]`."""
        return np.concatenate([np.zeros((0, size, size, 3), np.uint8), *self.picture_blocks(size)])

    def pictures_float(self, size: int) -> np.ndarray:
        """All pictures, float32 `[n, size, size, 3]` in [0, 1]."""
        return self.pictures_uint8(size).astype(np.float32) / 255
