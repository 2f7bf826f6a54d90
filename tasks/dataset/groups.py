"""Groups of rows that must not be parted, which of a group's rows are kept, and splits that keep a group together.

A near-copy of a training picture in the validation split ruins every memorization test, so whoever shares a picture, a
video or a named subject shares a split. Standing alike is no reason: with a thousand figures in a dozen poses the pose
alone chains a tenth of them into one group (docs/curation.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import faiss
import numpy as np

from tasks.common.skeleton import embed
from tasks.dataset.dedup import SAME_POSE, same_picture, same_scene


class UnionFind:
    """Disjoint sets over 0..n-1 with path halving; the smallest member is the root."""

    def __init__(self, n: int) -> None:
        self._parent = np.arange(n)

    def find(self, i: int) -> int:
        """The smallest member of i's set."""
        parent = self._parent
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    def roots(self) -> np.ndarray:
        """The smallest member of each one's set, int64 `[n]`."""
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above
        return self._parent.copy()

    def join(self, rows: np.ndarray, others: np.ndarray) -> int:
        """Make one set of each pair's two; the number of sets that this leaves fewer."""
        roots = self.roots()
        apart = roots[rows] != roots[others]  # in a still video nearly all pairs are of one set already
        fewer = 0
        for i, j in zip(rows[apart].tolist(), others[apart].tolist(), strict=True):
            low, high = sorted((self.find(i), self.find(j)))
            self._parent[high] = low
            fewer += low != high
        return fewer


def group(
    keys: Sequence[str], together: Iterable[Sequence[str]], fingerprints: np.ndarray, poses: np.ndarray
) -> tuple[list[str], dict[str, int]]:
    """The group of each row: the smallest key among all that belong together; and how many joins each witness made.

    `together`: columns of names, such as the source; rows with the same name (but "") belong together. Further
    witnesses are the pictures' fingerprints and the poses (see `duplicates`).
    """
    sets = UnionFind(len(keys))
    joins = Counter(same_name=0, same_picture=0, same_scene=0)
    for names in together:
        first: dict[str, int] = {}
        pairs = np.array([(first.setdefault(name, i), i) for i, name in enumerate(names) if name], np.int64)
        joins["same_name"] += sets.join(*pairs.reshape(-1, 2).T)
    for rows, others in same_picture(fingerprints):
        joins["same_picture"] += sets.join(rows, others)
    for rows, others in same_scene(fingerprints, poses):
        joins["same_scene"] += sets.join(rows, others)
    smallest: dict[int, str] = {}
    roots = sets.roots().tolist()
    for root, key in zip(roots, keys, strict=True):
        smallest[root] = min(smallest.get(root, key), key)
    return [smallest[root] for root in roots], dict(joins)


def thin(groups: Sequence[str], poses: np.ndarray, rank: np.ndarray, cap: int) -> tuple[list[int], list[int]]:
    """The rows to leave out: those that repeat a pose of their group, and those above `cap` rows of one group.

    Rows are taken in order of `rank` (the best is smallest), so that of two files of one picture the better is kept. Of
    more than `cap` different poses the most different are kept (farthest point sampling from the best row).
    """
    repeats: list[int] = []
    above: list[int] = []
    members: dict[str, list[int]] = {}
    for i in np.argsort(rank, kind="stable").tolist():
        members.setdefault(groups[i], []).append(i)
    for rows in members.values():
        if len(rows) > 1:
            points = embed(poses[rows])
            leaders = _leaders(points)
            different = set(leaders)
            repeats += [row for at, row in enumerate(rows) if at not in different]
            chosen = set(_farthest(points[leaders], cap))
            above += [rows[at] for n, at in enumerate(leaders) if n not in chosen]
    return sorted(repeats), sorted(above)


def _leaders(points: np.ndarray) -> list[int]:
    """In their order, the points that are not within SAME_POSE of an earlier leader."""
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(points)
    free = np.ones(len(points), bool)
    leaders = []
    for at, point in enumerate(points):
        if free[at]:
            leaders.append(at)
            free[index.range_search(point[None], SAME_POSE**2)[2]] = False
    return leaders


def _farthest(points: np.ndarray, count: int) -> list[int]:
    """At most `count` points, the first and then always the one that is farthest from those chosen."""
    if len(points) <= count:
        return list(range(len(points)))
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen
