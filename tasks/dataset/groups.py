"""Groups of rows that must be in the same split, and which rows of a group are kept.

A near-copy of a training picture in the validation split ruins every memorization test, so rows that share a picture, a
video or a named subject share a split. A similar pose alone does not make a group: with a thousand figures in a dozen
poses it would chain a tenth of them into one group (docs/curation.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import faiss
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tasks.common.skeleton import embed
from tasks.dataset.dedup import SAME_POSE, Pairs, same_picture, same_scene


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


def group(
    keys: Sequence[str], together: Iterable[Sequence[str]], fingerprints: np.ndarray, poses: np.ndarray
) -> tuple[list[str], dict[str, int]]:
    """The group of each row, named by the smallest key in it, and how many times each criterion united two groups.

    `together`: columns of names, such as the source. Rows with the same name belong together, except for the empty
    name. The other criteria are the pictures' fingerprints and the poses (see `dedup`).
    """
    groups = np.arange(len(keys))
    joins: dict[str, int] = {}
    criteria = {
        "same_name": _same_name(together),
        "same_picture": same_picture(fingerprints),
        "same_scene": same_scene(fingerprints, poses),
    }
    for name, pairs in criteria.items():
        before = len(np.unique(groups))
        for rows, others in pairs:
            groups = join(groups, rows, others)
        joins[name] = before - len(np.unique(groups))
    smallest: dict[int, str] = {}
    numbers = groups.tolist()
    for number, key in zip(numbers, keys, strict=True):
        smallest[number] = min(smallest.get(number, key), key)
    return [smallest[number] for number in numbers], joins


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
