"""Features on disk, found again by what they were computed from and by nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def digest(items: np.ndarray, extractor: Mapping[str, str | int]) -> str:
    """sha256 over the extractor's description (name, weights, resize filter, ...) and the items' type, shape and bytes."""
    about = {"dtype": str(items.dtype), "shape": items.shape, "extractor": dict(extractor)}
    h = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    h.update(np.ascontiguousarray(items).data)
    return h.hexdigest()


def cached(
    folder: Path, items: np.ndarray, extractor: Mapping[str, str | int], compute: Callable[[np.ndarray], Arrays]
) -> Arrays:
    """`compute(items)`, or what it gave before for the same items and extractor; kept in `folder/<digest>.npz`.

    Change one pixel, the weights or the description, and it is computed again.
    """
    path = folder / f"{digest(items, extractor)}.npz"
    if not path.is_file():
        arrays = compute(items)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, allow_pickle=False, **arrays)
        temporary.replace(path)
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
