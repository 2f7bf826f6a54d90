"""Features of pictures that are read block by block, kept on disk and found again by what they were computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tasks.common import files

Arrays = dict[str, np.ndarray]
Blocks = Callable[[], Iterator[np.ndarray]]  # the items, some at a time, from the beginning at every call


def digest(blocks: Blocks, about: Mapping[str, str | int]) -> str:
    """sha256 over the extractor's description (network, weights, resize filter, range, dtype) and the items' type, shape
    and bytes. How the items are cut into blocks does not count."""
    h = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    count = 0
    for block in blocks():
        if not count:
            h.update(json.dumps([str(block.dtype), block.shape[1:]]).encode())
        h.update(np.ascontiguousarray(block).data)
        count += len(block)
    h.update(str(count).encode())
    return h.hexdigest()


def extract(blocks: Blocks, compute: Callable[[np.ndarray], Arrays], name: str) -> Arrays:
    """`compute` of every block, laid end to end: one block of items is in memory at a time, and all features."""
    parts = [compute(block) for block in tqdm(blocks(), desc=name, unit="block", mininterval=2)]
    return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}


def cached(
    folder: Path, blocks: Blocks, about: Mapping[str, str | int], compute: Callable[[np.ndarray], Arrays], name: str
) -> Arrays:
    """`extract`, or what it gave before for the same items and extractor; kept in `folder/<digest>.npz`.

    Change one pixel, the weights or the description, and it is computed again.
    """
    path = folder / f"{digest(blocks, about)}.npz"
    if not path.is_file():
        arrays = extract(blocks, compute, name)
        with files.new_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
