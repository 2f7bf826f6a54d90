"""Shards: WebDataset tars with reproducible bytes, and an index to read any sample of them.

    folder/{split}-000000.tar   members `key.png` (not for motion captures), `key.pose.npy` (float32 [33, 3]), `key.json`;
                                of motion `key.clip.npy` (float32 [frames, 33, 3], see tasks.common.motion) and `key.json`
    folder/index.json           size and sha256 of each shard; for each sample its shard, and offset and size of its members

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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.images import area_average

FORMAT = 1
T = TypeVar("T")


def encode_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def encode_pose(pose: np.ndarray) -> bytes:
    """One pose `[33, 3]` or clip `[frames, 33, 3]` as npy bytes, float32."""
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(pose, dtype=np.float32), allow_pickle=False)
    return stream.getvalue()


def _index_of(path: Path) -> list[tuple[str, dict[str, tuple[int, int]]]]:
    """The samples of a tar in order: key and, for each extension, (offset, size) of its bytes."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
    return list(samples.items())


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
) -> dict[str, Any]:
    """Write the (key, {extension: bytes}) samples of each split into `folder`, and return its index.

    `about` is stored in the index (categories, origin of the samples). The folder appears under its name only when it is
    complete. Raises ValueError if a key is not unique or contains a dot.
    """
    from webdataset import TarWriter  # imports torch, which readers do not need

    index: dict[str, Any] = {"format": FORMAT, "about": dict(about), "shards": [], "samples": {}}
    seen: set[str] = set()
    with files.new_folder(folder) as temporary:
        for split, samples in splits.items():
            index["samples"][split] = []
            for part, chunk in enumerate(_chunks(samples, samples_per_shard)):
                path = temporary / f"{split}-{part:06d}.tar"
                with (
                    path.open("wb") as file,
                    TarWriter(file, mtime=0, user="contrapposto", group="contrapposto") as tar,
                ):
                    for key, members in chunk:
                        if key in seen or "." in key:
                            raise ValueError(f"sample key {key!r} is not unique or has a dot")
                        seen.add(key)
                        tar.write({"__key__": key, **members})
                number, digest = len(index["shards"]), hashlib.sha256(path.read_bytes()).hexdigest()
                size = path.stat().st_size
                index["shards"].append({"name": path.name, "split": split, "bytes": size, "sha256": digest})
                index["samples"][split] += [[key, number, members] for key, members in _index_of(path)]
        (temporary / "index.json").write_bytes(encode_json(index))
    return index


def resized(size: int, picture: np.ndarray) -> np.ndarray:
    """A picture, uint8 `[height, width, 3]`, averaged over areas to uint8 `[size, size, 3]`."""
    if picture.shape[:2] == (size, size):
        return picture
    if picture.shape[0] == picture.shape[1] > size:
        return area_average(picture, size)
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


class ShardDataset:
    """Random access to the samples of one or several splits of a shard folder, the only reader of shards.

    `keys`: the sample keys in stored order, split after split; `splits`: the names of all splits of the folder.
    Raises DataError if the folder has no such split, its index is damaged, a key occurs twice, or a tar has another length than
    its index says. `verify()` reads all bytes and compares their sha256.
    """

    def __init__(self, folder: Path, *splits: str) -> None:
        self.folder = folder
        path = folder / "index.json"
        if not path.is_file():
            raise DataError(f"{folder} has no index.json: it is not a shard folder.")
        index = files.read_json(path)
        for split in splits:
            if split not in index["samples"]:
                raise DataError(f"{folder} has no split {split!r}; it has {', '.join(index['samples'])}.")
        self.about: dict[str, Any] = index["about"]
        self.splits: list[str] = list(index["samples"])
        self.shards: list[dict[str, Any]] = index["shards"]
        self._rows: list[tuple[str, int, dict[str, tuple[int, int]]]] = [
            row for split in splits for row in index["samples"][split]
        ]
        self.keys: list[str] = [row[0] for row in self._rows]
        self._files: dict[int, int] = {}
        repeated = [key for key, count in Counter(self.keys).items() if count > 1]
        if repeated:
            raise DataError(
                f"{folder}: {len(repeated)} keys of {', '.join(splits)} occur more than once, the first is {repeated[0]!r}."
            )
        for number in {row[1] for row in self._rows}:
            shard = self.shards[number]
            file = folder / shard["name"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise DataError(f"{file} is missing or not {shard['bytes']} bytes long: it does not match its index.")

    def __len__(self) -> int:
        return len(self._rows)

    def digests(self) -> dict[str, str]:
        """The sha256 of the shards that hold samples of these splits, by name."""
        shards = [self.shards[number] for number in sorted({row[1] for row in self._rows})]
        return {shard["name"]: shard["sha256"] for shard in shards}

    def pictured(self) -> ShardDataset:
        """The samples that have a picture (motion captures have none)."""
        return self.take([i for i, row in enumerate(self._rows) if "png" in row[2]])

    def take(self, rows: Iterable[int]) -> ShardDataset:
        """The samples with these numbers, in this order."""
        other = copy.copy(self)
        other._rows = [self._rows[i] for i in rows]
        other.keys = [row[0] for row in other._rows]
        other._files = {}
        return other

    def __del__(self) -> None:
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)

    def verify(self) -> None:
        """Compare every shard's sha256 with the index; raises DataError naming the first that differs."""
        for shard in self.shards:
            path, expected = self.folder / shard["name"], shard["sha256"]
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if digest != expected:
                raise DataError(f"{path} is damaged: sha256 mismatch: expected {expected}, got {digest}.")

    def read(self, i: int, extension: str) -> bytes:
        """The bytes of one member of sample `i`; KeyError if the sample has no such member."""
        _, number, members = self._rows[i]
        offset, size = members[extension]
        if number not in self._files:
            self._files[number] = os.open(self.folder / self.shards[number]["name"], os.O_RDONLY)
        return os.pread(self._files[number], size, offset)

    def meta(self, i: int) -> dict[str, Any]:
        """The JSON of sample `i`."""
        value: dict[str, Any] = json.loads(self.read(i, "json"))
        return value

    def metas(self) -> list[dict[str, Any]]:
        """The JSON of all samples."""
        return [self.meta(i) for i in range(len(self))]

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
        with Image.open(io.BytesIO(self.read(i, "png"))) as image:
            rgb = np.asarray(image.convert("RGB"))
            return rgb if size is None else resized(size, rgb)

    def sides(self) -> list[int]:
        """The pixels along the side of each picture's square in the photograph; where they are fewer, it was enlarged."""
        return [int(meta["side"]) for meta in self.metas()]

    def picture_blocks(self, size: int, count: int | None = None, rows: int = 1024) -> Iterator[np.ndarray]:
        """The first `count` pictures (default: all), at most `rows` at a time: uint8 `[r, size, size, 3]`."""
        total = len(self) if count is None else min(count, len(self))
        for start in range(0, total, rows):
            yield np.stack([self.picture(i, size) for i in range(start, min(start + rows, total))])

    def pictures_uint8(self, size: int) -> np.ndarray:
        """All pictures, uint8 `[n, size, size, 3]`."""
        return np.concatenate([np.zeros((0, size, size, 3), np.uint8), *self.picture_blocks(size)])

    def pictures_float(self, size: int) -> np.ndarray:
        """All pictures, float32 `[n, size, size, 3]` in [0, 1]."""
        return self.pictures_uint8(size).astype(np.float32) / 255
