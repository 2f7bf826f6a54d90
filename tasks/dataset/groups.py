"""Groups of near-identical pictures, and splits that keep a group together.

A near-copy of a training picture in the validation split ruins every memorization test, so whoever shares a picture
shares a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

BLOCK = 2048  # rows compared at once: 2048 x n distances of one byte each


class UnionFind:
    """Disjoint sets over 0..n-1 with path halving; the smallest member is the root."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def find(self, i: int) -> int:
        """The smallest member of i's set."""
        while self._parent[i] != i:
            self._parent[i] = self._parent[self._parent[i]]
            i = self._parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        """Make one set of i's and j's."""
        low, high = sorted((self.find(i), self.find(j)))
        self._parent[high] = low


def near_pairs(hashes: np.ndarray, mirrored: np.ndarray, bits: int) -> Iterable[tuple[int, int]]:
    """Pairs i < j whose 64-bit perceptual hashes differ in at most `bits` bits, upright or one of them mirrored.

    `hashes`, `mirrored`: uint64 `[n]`, of the picture and of its mirror image. Memory is bounded by BLOCK * n bytes.
    """
    for start in range(0, len(hashes), BLOCK):
        block = hashes[start : start + BLOCK, None]
        near = np.bitwise_count(block ^ hashes[None, :]) <= bits
        near |= np.bitwise_count(block ^ mirrored[None, :]) <= bits
        for i, j in np.argwhere(near):
            if start + i < j:
                yield int(start + i), int(j)


def group(
    keys: Sequence[str], sources: Sequence[str], hashes: np.ndarray, mirrored: np.ndarray, bits: int
) -> list[str]:
    """The group of each row: the smallest key among all rows that share its source file or are near-copies of it."""
    sets = UnionFind(len(keys))
    first: dict[str, int] = {}
    for i, source in enumerate(sources):
        sets.join(first.setdefault(source, i), i)
    for i, j in near_pairs(hashes, mirrored, bits):
        sets.join(i, j)
    smallest: dict[int, str] = {}
    for i, key in enumerate(keys):
        root = sets.find(i)
        smallest[root] = min(smallest.get(root, key), key)
    return [smallest[sets.find(i)] for i in range(len(keys))]


def split_of(group: str, seed: int, val: float, test: float) -> str:
    """The split of a group, `train`, `val` or `test`: a pure function of (seed, group).

    Since no other group plays a part, a group stays in its split when the dataset grows.
    """
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if u < val else "test" if u < val + test else "train"
