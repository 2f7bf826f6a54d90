"""Named arrays in one NPZ file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tasks.common import files

Arrays = dict[str, np.ndarray]


def write(path: Path, arrays: Arrays) -> None:
    """Write arrays atomically. Raises ValueError for arrays of objects."""
    with files.new_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read(path: Path) -> Arrays:
    """The arrays in a file. Raises DamagedFile if they cannot be read, or are objects."""
    with files.reading(path), np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
