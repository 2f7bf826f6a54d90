"""Digests of the data, to notice new data: one for each part, and one for the shards.

A pipeline run records the digests that it started with. Whatever differs from them later has arrived since.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from flows import parts
from tasks import paths
from tasks.common import files
from tasks.config.data import MANNEQUIN
from tasks.config.params import Params
from tasks.extract.scan import walk

SHARDS = paths.SHARDS.as_posix()
Fingerprint = dict[str, str]


def fingerprint(params: Params, root: Path) -> Fingerprint:
    """Folder -> digest: of the names, sizes and times of the files of every part except the built-in one, and of the shards'
    index. Missing folders are left out."""
    folders = {root / folder for folder in parts.current(root, params.raw).values()}
    digests = {}
    for part in sorted(folders):
        if os.path.isdir(part) and part != root / MANNEQUIN:
            digests[_name(part, root)] = content(part)
    index = root / SHARDS / "index.json"
    if index.is_file():
        digests[SHARDS] = hashlib.sha256(index.read_bytes()).hexdigest()
    return digests


def content(folder: Path) -> str:
    """A digest of the names, sizes and times of all files below a folder."""
    digest = hashlib.sha256()
    for name, size, modified in sorted(_files(folder)):
        digest.update(f"{name}\0{size}\0{modified}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Relative name, bytes, and modification time in nanoseconds of every entry below a folder; system files do not count."""
    for entry in walk(folder):
        status = entry.status
        yield entry.path, status.st_size if status else -1, status.st_mtime_ns if status else -1


def _name(part: Path, root: Path) -> str:
    return str(part.relative_to(root) if part.is_relative_to(root) else part)


def _record(root: Path) -> Path:
    return root / paths.SEEN_DATA


def remember(root: Path, known: Fingerprint) -> None:
    """Record the data that a pipeline run has taken into account."""
    files.write_json(_record(root), known)


def arrived(root: Path, now: Fingerprint) -> list[str]:
    """The folders that are new, gone or changed since the last pipeline run. Empty before the first run.

    Raises DamagedFile if the record of that run cannot be read.
    """
    if not _record(root).is_file():
        return []
    known: Fingerprint = files.read_json(_record(root))
    gone = known.keys() - now.keys() - {SHARDS}  # missing shards are no news: every run makes them
    return sorted(gone | {folder for folder, digest in now.items() if known.get(folder) != digest})
