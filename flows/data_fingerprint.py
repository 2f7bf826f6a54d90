"""What data are here, so that new ones are noticed: a digest for each part, and one for the shards.

A pipeline run writes down what it began with; whatever differs from that afterwards has arrived since.
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

SHARDS = paths.SHARDS.as_posix()
Fingerprint = dict[str, str]


def fingerprint(params: Params, root: Path) -> Fingerprint:
    """Folder -> digest: names, sizes and times of the files of every part (the built-in one is not delivered but made),
    and the content of the shards, by their index. A folder that is not there is left out."""
    folders = {root / folder for folder in parts.found(root, params.raw).values()}
    found = {}
    for part in sorted(folders):
        if part.is_dir() and part != root / MANNEQUIN:
            found[_name(part, root)] = content(part)
    index = root / SHARDS / "index.json"
    if index.is_file():
        found[SHARDS] = hashlib.sha256(index.read_bytes()).hexdigest()
    return found


def content(folder: Path) -> str:
    """A digest of the names, sizes and times of all files below a folder."""
    digest = hashlib.sha256()
    for name, size, modified in sorted(_files(folder)):
        digest.update(f"{name}\0{size}\0{modified}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Relative name, bytes, and modification time in nanoseconds of every file below a folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                about = os.stat(path)
            except FileNotFoundError:  # a delivery under way may rename its files
                continue
            yield os.path.relpath(path, folder), about.st_size, about.st_mtime_ns


def _name(part: Path, root: Path) -> str:
    return str(part.relative_to(root) if part.is_relative_to(root) else part)


def _record(root: Path) -> Path:
    return root / paths.SEEN_DATA


def remember(root: Path, seen: Fingerprint) -> None:
    """Write down what a pipeline run has taken into account."""
    files.write_json(_record(root), seen)


def arrived(root: Path, now: Fingerprint) -> list[str]:
    """The folders that are new, gone, or other than the last pipeline run saw them. Nothing before the first run."""
    if not _record(root).is_file():
        return []
    seen = files.read_json(_record(root))
    gone = seen.keys() - now.keys() - {SHARDS}  # shards that are not there are made by any run
    return sorted(gone | {folder for folder, digest in now.items() if seen.get(folder) != digest})
