"""Features of pictures that are read block by block, cached on disk under a digest of what they were computed from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tasks.common import arrays
from tasks.common.arrays import Arrays

Blocks = Callable[[], Iterator[np.ndarray]]  # yields the items in blocks; every call starts from the beginning


def digest(blocks: Blocks, about: Mapping[str, str | int]) -> str:
    """sha256 over the description of the extractor and the items' dtype, shape and bytes, however they are cut into blocks.

    `about`: network, weights, resize filter, range, dtype.
    """
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
    """`compute` of every block, concatenated. One block of items is in memory at a time. `name` labels the progress bar."""
    parts = [compute(block) for block in tqdm(blocks(), desc=name, unit="block", mininterval=2)]
    return {field: np.concatenate([part[field] for part in parts]) for field in parts[0]}


def cached(
    folder: Path, blocks: Blocks, about: Mapping[str, str | int], compute: Callable[[np.ndarray], Arrays], name: str
) -> Arrays:
    """`extract`, cached in `folder/<digest>.npz`: a change of one pixel, the weights or the description computes it again."""
    path = place(folder, blocks, about)
    if not path.is_file():
        arrays.write(path, extract(blocks, compute, name))
    return arrays.read(path)


def place(folder: Path, blocks: Blocks, about: Mapping[str, str | int]) -> Path:
    """The file of these features in the cache."""
    return folder / f"{digest(blocks, about)}.npz"
