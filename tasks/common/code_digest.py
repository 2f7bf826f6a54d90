"""The digest of source files, for results that must not outlive the code that made them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def code_digest(patterns: Iterable[str]) -> str:
    """Sha256 over the files that match the glob patterns, which are relative to the project's folder."""
    sha = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in PROJECT.glob(pattern)}):
        sha.update(path.read_bytes())
    return sha.hexdigest()
