"""The digest of source files, for cached results that become invalid when the code that made them changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def code_files(patterns: Iterable[str], without: Iterable[str] = ()) -> list[Path]:
    """The files that match the glob patterns `patterns` and not `without`, all relative to the project's folder.

    Raises ValueError if a pattern matches nothing: the code it names has been moved.
    """
    return sorted(_matching(patterns) - _matching(without))


def _matching(patterns: Iterable[str]) -> set[Path]:
    files: set[Path] = set()
    for pattern in patterns:
        matches = set(PROJECT.glob(pattern))
        if not matches:
            raise ValueError(f"no file matches {pattern}")
        files |= matches
    return files


def code_digest(patterns: Iterable[str], without: Iterable[str] = ()) -> str:
    """Sha256 over the names and contents of `code_files(patterns, without)`."""
    sha = hashlib.sha256()
    for path in code_files(patterns, without):
        content = path.read_bytes()
        sha.update(f"{path.relative_to(PROJECT).as_posix()} {len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()
