"""Groups of rows that must be in the same split, and which rows of a group are kept.

A near-copy of a training picture in the validation split ruins every memorization test, so rows that share a picture, a
video or a named subject share a split. A similar pose alone does not make a group: with a thousand figures in a dozen
poses it would chain a tenth of them into one group (docs/curation.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import faiss
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tasks.common.skeleton import embed
from tasks.dataset.dedup import SAME_POSE, Pairs, same_picture


def join(groups: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The groups after uniting those of each pair of rows: numbers from 0, int32 `[n]`. `groups`: the numbers before."""
    apart = groups[rows] != groups[others]  # nearly all pairs of a still video are united already
    if not apart.any():
        return groups
    edges = groups[rows[apart]], groups[others[apart]]
    count = int(groups.max()) + 1
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(count, count))
    united: np.ndarray = connected_components(graph, directed=False)[1][groups]
    return united


class Near(NamedTuple):
    """Pairs of rows of near-duplicate pictures, and their distance (see `near_duplicates`)."""

    rows: np.ndarray
    others: np.ndarray
    distance: np.ndarray


NONE_NEAR = Near(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))


def group(
    keys: Sequence[str],
    together: Iterable[Sequence[str]],
    fingerprints: np.ndarray,
    near: Near,
    cut: float,
    picture: np.ndarray,
) -> tuple[list[str], dict[str, int]]:
    """The group of each row, named by the smallest key in it, and how many times each criterion united two groups.

    `together`: columns of names, such as the source. Rows with the same name belong together, except for the empty
    name. The other criteria are the pictures' fingerprints (see `dedup`), and the pairs of near-duplicates (see `join_near`).
    """
    groups = np.arange(len(keys))
    joins: dict[str, int] = {}
    criteria = {
        "same_name": _same_name(together),
        "same_picture": same_picture(fingerprints),
    }
    for name, pairs in criteria.items():
        before = len(np.unique(groups))
        for rows, others in pairs:
            groups = join(groups, rows, others)
        joins[name] = before - len(np.unique(groups))
    before = len(np.unique(groups))
    groups = join_near(groups, near, cut, picture)
    joins["near_duplicate"] = before - len(np.unique(groups))
    smallest: dict[int, str] = {}
    numbers = groups.tolist()
    for number, key in zip(numbers, keys, strict=True):
        smallest[number] = min(smallest.get(number, key), key)
    return [smallest[number] for number in numbers], joins


def join_near(groups: np.ndarray, near: Near, cut: float, picture: np.ndarray, small: int = 2) -> np.ndarray:
    """The groups after uniting those of near pairs, so that no chain of doubtful pairs unites what is unrelated.

    A pair nearer than half the cut is certain, and unites its groups. A pair up to the cut is doubtful: it unites two groups of
    at most `small` pictures together; larger groups only together with a second pair between the same two groups. `picture`:
    number of the picture of each row, `[n]`, -1 for none.
    """
    size = {number: len(set(members.tolist())) for number, members in _members(groups, picture)}
    parent = {number: number for number in size}
    doubtful: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))  # pairs seen between two groups

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = number = parent[parent[number]]
        return number

    def unite(a: int, b: int) -> None:
        while True:
            if len(doubtful[a]) < len(doubtful[b]):
                a, b = b, a
            parent[b] = a
            size[a] += size.pop(b)
            for other, count in doubtful.pop(b).items():
                del doubtful[other][b]
                if other != a:
                    doubtful[a][other] += count
                    doubtful[other][a] = doubtful[a][other]
            supported = [other for other, count in doubtful[a].items() if count > 1]
            if not supported:
                return
            b = supported[0]

    within = np.flatnonzero(near.distance <= cut)
    order = within[np.lexsort((near.others[within], near.rows[within], near.distance[within]))]
    for at in order.tolist():
        a, b = root(int(groups[near.rows[at]])), root(int(groups[near.others[at]]))
        if a == b:
            continue
        if near.distance[at] <= cut / 2 or size[a] + size[b] <= small:
            unite(a, b)
            continue
        doubtful[a][b] += 1
        doubtful[b][a] = doubtful[a][b]
        if doubtful[a][b] > 1:
            unite(a, b)
    united: np.ndarray = np.unique([root(number) for number in groups.tolist()], return_inverse=True)[1]
    return united


def _members(groups: np.ndarray, values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Each group's number with the values of its rows."""
    order = np.argsort(groups, kind="stable")
    numbers, starts = np.unique(groups[order], return_index=True)
    yield from zip(numbers.tolist(), np.split(values[order], starts[1:]), strict=True)


def _same_name(together: Iterable[Sequence[str]]) -> Iterator[Pairs]:
    """Pairs of rows with the same name: each row with the first of that name."""
    for names in together:
        first: dict[str, int] = {}
        pairs = np.array([(first.setdefault(name, i), i) for i, name in enumerate(names) if name], np.int64)
        rows, others = pairs.reshape(-1, 2).T
        yield rows, others


def thin(groups: Sequence[str], poses: np.ndarray, rank: np.ndarray, cap: int) -> tuple[list[int], list[int]]:
    """The rows to leave out: those that repeat a pose of their group, and those above `cap` rows of one group.

    Rows are taken in order of `rank` (the best has the smallest), so that the better of two files of one picture is kept.
    Of more than `cap` different poses the most different are kept (farthest point sampling from the best row).
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
    """Numbers of the points that are farther than SAME_POSE from every earlier leader, in their order."""
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
    """Numbers of at most `count` points: the first, then always the one farthest from those chosen."""
    if len(points) <= count:
        return list(range(len(points)))
    chosen = [0]
    distance = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return chosen
