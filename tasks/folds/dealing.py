"""Deals the examples into folds: a group is in one fold as a whole, and the folds are as equal as the groups allow."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tasks.common.errors import DataError

LEAST = 8  # examples in a fold


def deal(groups: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """The fold of each example, int64 `[n]`, given the name of its group.

    The groups are shuffled by `seed`, then dealt from the largest to the smallest, each into the fold that has the fewest
    examples. Raises DataError if a fold would have fewer than LEAST examples.
    """
    sizes = Counter(groups)
    names = sorted(sizes)
    order = np.random.default_rng(seed).permutation(len(names))
    shuffled = sorted((names[i] for i in order), key=lambda name: -sizes[name])
    heap = [(0, fold) for fold in range(folds)]
    fold_of = {}
    for name in shuffled:
        size, fold = heapq.heappop(heap)
        fold_of[name] = fold
        heapq.heappush(heap, (size + sizes[name], fold))
    smallest = min(heap)[0]
    if smallest < LEAST:
        raise DataError(
            f"{folds} folds need at least {LEAST} examples each; {len(groups)} examples in {len(sizes)} groups give a fold "
            f"of {smallest}."
        )
    return np.array([fold_of[name] for name in groups], np.int64)
