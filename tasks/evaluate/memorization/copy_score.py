"""The copy score of a sample: how much nearer its nearest training item is than the second, of another group.

For a locally smooth law of intrinsic dimension k the ratio r = d1/d2 of a fresh sample satisfies P(r <= t) = t^k
(Facco et al. 2017), whatever the local density; a copy has a ratio near 0. Near-duplicate training items (frames of a
video, shots of one scene) belong to one group and count once, otherwise d2 is as small as d1 and hides the copy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tasks.common.errors import DataError
from tasks.evaluate.memorization.invariances import Bank
from tasks.metrics.neighbours import Neighbours, search

SMALLEST = 1e-9  # a ratio below is as good as 0 and is set to this, so that its logarithm exists
ITEMS = 256  # items whose views are in memory at once


class TooFewItems(DataError):
    """There is nothing to compare: no samples, nothing held out, or hardly a training set."""


class Scores(NamedTuple):
    """One row a sample. `first`, `second`: rows of the training set; `view`: index of the nearest view."""

    ratio: np.ndarray  # float64 [n], in (0, 1]
    first_distance: np.ndarray  # float64 [n], feature units
    second_distance: np.ndarray  # float64 [n]
    first: np.ndarray  # int64 [n]
    second: np.ndarray  # int64 [n]
    view: np.ndarray  # int64 [n]


def _over_views(found: Neighbours, views: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k nearest training items of each sample by the smallest distance over its views: distance, index, view.

    `found` holds the k nearest of every view, `[views * n, k]`; those of the best k items are among them.
    """
    n = len(found.index) // views
    distance = found.distance.reshape(views, n, -1).transpose(1, 0, 2).reshape(n, -1)
    index = found.index.reshape(views, n, -1).transpose(1, 0, 2).reshape(n, -1)
    view = np.repeat(np.arange(views), found.index.shape[1])[None].repeat(n, axis=0)
    order = np.lexsort((distance, index), axis=1)
    distance, index, view = (np.take_along_axis(a, order, 1) for a in (distance, index, view))
    again = np.zeros(index.shape, bool)
    again[:, 1:] = index[:, 1:] == index[:, :-1]
    distance = np.where(again, np.inf, distance)
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return tuple(np.take_along_axis(a, order, 1) for a in (distance, index, view))  # type: ignore[return-value]


def _score_rows(
    bank: Bank, items: np.ndarray, own: np.ndarray | None, base: np.ndarray, groups: np.ndarray, k: int
) -> tuple[Scores, np.ndarray]:
    """Scores from the k nearest training items, and which rows they do not suffice for."""
    views = bank.all_views(items)
    found = search(views.reshape(-1, views.shape[-1]), base, k)
    distance, index, view = _over_views(found, len(views), k)
    group = groups[index]
    allowed = np.ones(index.shape, bool) if own is None else group != own[:, None]
    rows = np.arange(len(items))
    first = allowed.argmax(axis=1)
    other = allowed & (group != group[rows, first][:, None])
    second = other.argmax(axis=1)
    missing = ~other[rows, second]
    d1, d2 = distance[rows, first], distance[rows, second]
    ratio = np.clip(np.divide(d1, d2, out=np.zeros_like(d1), where=d2 > 0), SMALLEST, 1.0)
    scores = Scores(ratio, d1, d2, index[rows, first], index[rows, second], view[rows, first])
    return scores, np.flatnonzero(missing)


def score(
    bank: Bank, items: np.ndarray, train: np.ndarray, groups: np.ndarray, own: np.ndarray | None = None
) -> Scores:
    """Copy scores of `items` `[n, ...]` against `train` `[m, ...]` whose groups are `groups` `[m]`.

    `own`: the group of each item, left out of its search (leave-group-out scores of the training set itself).
    Raises TooFewItems if the training set does not hold two groups besides an item's own.
    """
    enough = 2 if own is None else 3
    if len(np.unique(groups)) < enough:
        raise TooFewItems(f"the copy test needs {enough} groups of training items, and there are fewer.")
    base = bank.features(train)
    parts = []
    for start in range(0, len(items), ITEMS):
        rows = slice(start, start + ITEMS)
        here, mine = items[rows], None if own is None else own[rows]
        k = min(len(base), enough)
        part, missing = _score_rows(bank, here, mine, base, groups, k)
        while len(missing):  # all k nearest are of one or two groups: look further, for those alone
            k = min(len(base), 4 * k)
            again = None if mine is None else mine[missing]
            more, still = _score_rows(bank, here[missing], again, base, groups, k)
            for column, replacement in zip(part, more, strict=True):
                column[missing] = replacement
            missing = missing[still]
        parts.append(part)
    return Scores(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def null_scores(bank: Bank, train: np.ndarray, groups: np.ndarray, heldout: np.ndarray) -> tuple[Scores, Scores]:
    """Scores of items that nobody generated: held-out to train, and train to the rest of train (own group left out).

    Together they are the null of the copy test; the held-out set alone is too small to calibrate its tail.
    """
    return score(bank, heldout, train, groups), score(bank, train, train, groups, own=groups)
