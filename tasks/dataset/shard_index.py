"""The index of a shard folder: where each sample lies, in files that are never read as a whole.

    folder/index.json       `about`, the shards with their sizes and sha256, and the number of samples of each split
    folder/{split}.jsonl    one line per sample: `["key", {"json": [offset, size], "png": [offset, size], ...}]`
    folder/{split}.offsets  where each line begins, and the length of the file: uint64, little-endian

The samples of a shard are consecutive lines. Opening reads index.json only, and a sample costs two reads of a few bytes, so
neither time nor memory grow with the number of samples. (SQLite is slower to read, and its bytes depend on its version.)
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict  # typing's is not enough for pydantic before Python 3.12

from tasks.common import files
from tasks.common.errors import DataError

FORMAT = 2
FILE = "index.json"
AT_ONCE = 1 << 22  # keys whose digests are compared at a time: 32 MB
OFFSET = np.dtype("<u8")

_Count = Annotated[int, Field(ge=0)]
Members = dict[str, Sequence[int]]  # extension -> offset and size of its bytes in the tar


class _Shard(TypedDict):
    name: str
    split: str
    samples: _Count
    bytes: _Count
    sha256: str


class _Split(TypedDict):
    samples: _Count
    members: dict[str, _Count]
    sha256: str


class _Index(TypedDict):
    """What is read of index.json, which has further keys."""

    about: dict[str, Any]
    shards: list[_Shard]
    splits: dict[str, _Split]


_CHECKED = TypeAdapter(_Index)


def read(folder: Path) -> dict[str, Any]:
    """The content of index.json.

    Raises DataError if there is none, if an older version wrote it, if it is damaged, or if it names files outside of the
    folder.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(
            f"{folder} has no {FILE}: the stages before this one have not run; `dvc repro` runs them in order."
        )
    index = files.read_json(path)
    version = index.get("format") if isinstance(index, dict) else None
    if version != FORMAT:
        raise DataError(
            f"{folder} was written by an older version (format {version}, now {FORMAT}). Run the stage that writes it again, "
            "for example `curate`; `dvc repro` does that by itself."
        )
    with files.reading(path):
        checked = _CHECKED.validate_python(index, strict=True)
    for name in [*checked["splits"], *(shard["name"] for shard in checked["shards"])]:
        if not files.is_plain(name):
            raise DataError(f"{path} names {name!r}, which is outside of its folder.")
    return dict(index)


class SplitWriter:
    """Writes the index of one split line by line, in constant memory."""

    def __init__(self, folder: Path, split: str) -> None:
        self._lines, self._offsets = (folder / f"{split}.jsonl").open("wb"), (folder / f"{split}.offsets").open("wb")
        self._digest, self._members, self._count = hashlib.sha256(), Counter[str](), 0
        self._mark()

    def add(self, key: str, members: Mapping[str, Sequence[int]]) -> None:
        """Append a sample."""
        line = json.dumps([key, members], sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self._lines.write(line)
        self._digest.update(line)
        self._members.update(members.keys())
        self._count += 1
        self._mark()

    def _mark(self) -> None:
        self._offsets.write(self._lines.tell().to_bytes(8, "little"))

    def summary(self) -> dict[str, Any]:
        """The split's entry in index.json: samples, how many have each member, and the sha256 of the lines."""
        members = dict(sorted(self._members.items()))
        return {"samples": self._count, "members": members, "sha256": self._digest.hexdigest()}

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()
        self._offsets.close()


class SplitIndex:
    """The index of one split. It can be pickled: a copy opens the files again.

    `count`: samples according to index.json. Raises DataError if the files have another length.
    """

    def __init__(self, folder: Path, split: str, count: int) -> None:
        self.folder, self.split, self._count = folder, split, count
        self._descriptors: list[int] = []
        for name in (f"{split}.jsonl", f"{split}.offsets"):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing.")
            self._descriptors.append(os.open(folder / name, os.O_RDONLY))
        lines, offsets = (os.fstat(descriptor).st_size for descriptor in self._descriptors)
        self._bytes = lines
        if offsets != (count + 1) * OFFSET.itemsize or self._offset(count) != lines:
            raise DataError(
                f"{folder / split}.jsonl is damaged: it does not hold {count} samples. Write the shards again."
            )

    def __len__(self) -> int:
        return self._count

    def __reduce__(self) -> tuple[type[SplitIndex], tuple[Path, str, int]]:
        return SplitIndex, (self.folder, self.split, self._count)

    def __del__(self) -> None:
        for descriptor in getattr(self, "_descriptors", []):
            os.close(descriptor)

    def _offset(self, i: int) -> int:
        return int.from_bytes(os.pread(self._descriptors[1], 8, 8 * i), "little")

    def row(self, i: int) -> tuple[str, Members]:
        """The key of sample `i`, and offset and size of each of its members. Raises DamagedFile if they cannot be read."""
        both = os.pread(self._descriptors[1], 16, 8 * i)
        start, end = int.from_bytes(both[:8], "little"), int.from_bytes(both[8:], "little")
        with files.reading(self.folder / f"{self.split}.jsonl"):
            if not start < end <= self._bytes:
                raise ValueError(f"line {i} ends before it begins, or after the file")
            key, members = json.loads(os.pread(self._descriptors[0], end - start, start))
        return key, members


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


class UniqueKeys:
    """Finds a key that occurs twice among any number of keys, in constant memory.

    64-bit digests of the keys are kept in an unnamed file in `folder`, and sorted a few millions at a time. Different keys may
    have the same digest, so the keys of equal digests are compared themselves.
    """

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder)
        self._count = 0

    def add(self, key: str) -> None:
        """Take note of a key."""
        self._file.write(_digest(key).to_bytes(8, "little"))
        self._count += 1

    def repeated(self, keys: Iterator[str]) -> str | None:
        """A key that was added twice, or None. `keys`: those that were added, used only where digests are equal."""
        suspects = self._repeated_digests()
        seen: set[str] = set()
        for key in keys if suspects else ():
            if _digest(key) in suspects:
                if key in seen:
                    return key
                seen.add(key)
        return None

    def _repeated_digests(self) -> set[int]:
        """The digests that occur more than once. Each pass over the file sorts those of one residue."""
        passes = -(-self._count // AT_ONCE)
        repeated: set[int] = set()
        for residue in range(passes):
            part = np.sort(np.concatenate([chunk[chunk % passes == residue] for chunk in self._chunks()]))
            repeated.update(part[1:][part[1:] == part[:-1]].tolist())
        return repeated

    def _chunks(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        while data := self._file.read(AT_ONCE):
            yield np.frombuffer(data, OFFSET)

    def close(self) -> None:
        """Delete the digests."""
        self._file.close()
