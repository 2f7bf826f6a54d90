"""The copy score of a sample: its distance to the nearest training item over that to the second, of another group.

For a locally smooth law of intrinsic dimension k the ratio r = d1/d2 of a fresh sample satisfies P(r <= t) = t^k
(Facco et al. 2017), whatever the local density; a copy has a ratio near 0. Near-duplicate training items (frames of a
video, shots of one scene) belong to one group and count once. Otherwise d2 would be as small as d1 and hide the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from tasks.common.errors import DataError
from tasks.evaluate.memorization.invariances import Bank
from tasks.metrics.neighbours import Neighbours, search

SMALLEST = 1e-9  # smaller ratios are raised to this, so that their logarithm exists
ITEMS = 256  # items whose transformations are in memory at once


class TooFewItems(DataError):
    """There is nothing to compare: no samples, nothing held out, or too small a training set."""


class Scores(NamedTuple):
    """One row per sample. `first`, `second`: rows of the training set; `invariance`: index of the best transformation."""

    ratio: np.ndarray  # float64 [n], in (0, 1]
    first_distance: np.ndarray  # float64 [n], feature units
    second_distance: np.ndarray  # float64 [n]
    first: np.ndarray  # int64 [n]
    second: np.ndarray  # int64 [n]
    invariance: np.ndarray  # int64 [n]

    def rows(self, rows: np.ndarray) -> Scores:
        """The scores of some of the samples."""
        return Scores(*(column[rows] for column in self))


class _Nearest(NamedTuple):
    """The k nearest training items of each sample, over all transformations: `[n, k]` each."""

    distance: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    invariance: np.ndarray

    def columns(self, order: np.ndarray) -> _Nearest:
        """Each row with its columns in another order."""
        return _Nearest(*(np.take_along_axis(column, order, 1) for column in self))


def _over_invariances(neighbours: Neighbours, transformations: int, k: int) -> _Nearest:
    """The k nearest training items by the smallest distance over the transformations.

    `neighbours` holds the k nearest under every transformation, `[transformations * n, k]`; the k nearest items overall
    are among them.
    """
    n = len(neighbours.index) // transformations
    distance, index = (part.reshape(transformations, n, -1).transpose(1, 0, 2).reshape(n, -1) for part in neighbours)
    invariance = np.repeat(np.arange(transformations), neighbours.index.shape[1])[None].repeat(n, axis=0)
    nearest = _Nearest(distance, index, invariance)
    nearest = nearest.columns(np.lexsort((nearest.distance, nearest.index), axis=1))
    # An item is found under several transformations; only its smallest distance counts.
    repeated = np.zeros(nearest.index.shape, bool)
    repeated[:, 1:] = nearest.index[:, 1:] == nearest.index[:, :-1]
    nearest = nearest._replace(distance=np.where(repeated, np.inf, nearest.distance))
    return nearest.columns(np.argsort(nearest.distance, axis=1, kind="stable")[:, :k])


class Scorer(Protocol):
    """Gives the copy scores of items against one training set, in one bank."""

    def score(self, items: np.ndarray, own: np.ndarray | None = None) -> Scores:
        """Copy scores of `items` `[n, ...]`. `own`: the group of each item, left out of its search."""


class ViewScorer:
    """Copy scores in a bank of transformations, against `train` `[m, ...]` whose groups are `groups` `[m]`."""

    def __init__(self, bank: Bank, train: np.ndarray, groups: np.ndarray) -> None:
        self._bank, self._base, self._groups = bank, bank.base_features(train), groups

    def score(self, items: np.ndarray, own: np.ndarray | None = None) -> Scores:
        """See Scorer. Raises TooFewItems if the training set does not hold two groups besides an item's own."""
        needed = needed_groups(self._groups, own)
        blocks = []
        for start in range(0, len(items), ITEMS):
            block = items[start : start + ITEMS]
            block_own = None if own is None else own[start : start + ITEMS]
            k = min(len(self._base), needed)
            scores, missing = self._rows(block, block_own, k)
            while len(missing):  # all k nearest are of one or two groups: widen the search for these items alone
                k = min(len(self._base), 4 * k)
                missing_own = None if block_own is None else block_own[missing]
                wider, still_missing = self._rows(block[missing], missing_own, k)
                for column, replacement in zip(scores, wider, strict=True):
                    column[missing] = replacement
                missing = missing[still_missing]
            blocks.append(scores)
        return joined(blocks)

    def _rows(self, items: np.ndarray, own: np.ndarray | None, k: int) -> tuple[Scores, np.ndarray]:
        """Scores from the k nearest training items, and the rows for which k was too small."""
        transformed = self._bank.transformed_features(items)
        neighbours = search(transformed.reshape(-1, transformed.shape[-1]), self._base, k)
        distance, index, invariance = _over_invariances(neighbours, len(transformed), k)
        group = self._groups[index]
        allowed = np.ones(index.shape, bool) if own is None else group != own[:, None]
        rows = np.arange(len(items))
        first = allowed.argmax(axis=1)
        other = allowed & (group != group[rows, first][:, None])
        second = other.argmax(axis=1)
        missing = ~other[rows, second]
        d1, d2 = distance[rows, first], distance[rows, second]
        scores = Scores(ratio(d1, d2), d1, d2, index[rows, first], index[rows, second], invariance[rows, first])
        return scores, np.flatnonzero(missing)


def ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """d1/d2, raised to SMALLEST."""
    divided: np.ndarray = np.clip(np.divide(first, second, out=np.zeros_like(first), where=second > 0), SMALLEST, 1.0)
    return divided


def joined(blocks: Sequence[Scores]) -> Scores:
    """The scores of all blocks of items."""
    if not blocks:
        return Scores(*(np.zeros(0, kind) for kind in (float, float, float, np.int64, np.int64, np.int64)))
    return Scores(*(np.concatenate(columns) for columns in zip(*blocks, strict=True)))


def needed_groups(groups: np.ndarray, own: np.ndarray | None) -> int:
    """How many groups of training items a score needs; raises TooFewItems if there are fewer."""
    needed = 2 if own is None else 3
    if len(np.unique(groups)) < needed:
        raise TooFewItems(f"the copy test needs {needed} groups of training items, and there are fewer.")
    return needed
