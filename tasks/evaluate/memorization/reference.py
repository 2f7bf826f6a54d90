"""What samples are compared with: training and held-out items, and the scores of items that no model generated.

A reference is most of the work of a copy test. It is made once and serves every set of samples that is judged against the
same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.common.errors import DataError
from tasks.evaluate.memorization.copy_score import Scorer, Scores, TooFewItems
from tasks.evaluate.memorization.copy_test import Leak, Tail, fit_tail, leak
from tasks.evaluate.memorization.invariances import AlignedBank, AnyBank
from tasks.evaluate.memorization.scorers import scorer
from tasks.metrics.estimate import check_features


@dataclass(frozen=True)
class Items:
    """Pictures `[n, h, w, 3]` (uint8, or float32 in [0, 1]; a fourth channel is 0 outside a picture of another shape) or poses
    `[n, 33, 3]` (float32), and the group of each: integers `[n]`."""

    data: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Null:
    """Scores in one bank of items that no model generated, and the tail fitted to both kinds together."""

    bank: AnyBank
    to_train: Scorer
    heldout: Scores  # of held-out items to the training set
    left_out: Scores  # of training items to the other groups of the training set
    tail: Tail


@dataclass(frozen=True)
class Reference:
    """Training and held-out items, their nulls in every bank, and the results of the leak detector.

    Groups are renumbered with those of the training set first: 0 .. train_groups - 1. A held-out item whose group is also
    in train counts as train.
    """

    train: Items
    heldout: Items
    train_groups: int
    heldout_groups: int
    nulls: tuple[Null, ...]
    leak_heldout: Leak | None
    leak_train: Leak | None


def check_items(name: str, data: np.ndarray, like: np.ndarray | None = None) -> None:
    """Raise DataError if items are not finite, or not of the shape of the items they are compared with."""
    if like is not None and data.shape[1:] != like.shape[1:]:
        shapes = [" x ".join(map(str, items.shape[1:])) for items in (data, like)]
        raise DataError(f"{name} are {shapes[0]} numbers each, and the training items {shapes[1]}.")
    check_features(name, data.reshape(len(data), -1))


def renumbered(train: Items, heldout: Items) -> tuple[Items, Items, int, int]:
    """The items with their groups renumbered as in Reference, and the numbers of groups of train and of heldout alone."""
    names, group = np.unique(np.concatenate([train.group, heldout.group]), return_inverse=True)
    in_train = np.isin(np.arange(len(names)), group[: len(train)])
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(~in_train, kind="stable")] = np.arange(len(names))
    group = rank[group]
    train_groups = int(in_train.sum())
    split = Items(train.data, group[: len(train)]), Items(heldout.data, group[len(train) :])
    return *split, train_groups, len(names) - train_groups


def make_reference(
    banks: Sequence[AnyBank],
    train: Items,
    heldout: Items,
    *,
    calibration: int | None = None,
    without_heldout: bool = False,
) -> Reference:
    """The reference of a copy test in these banks; the leak detector uses the features of the first.

    Together, the scores of held-out items and of training items with their own group left out are the null of the copy test;
    the held-out set alone is too small to calibrate its tail. `calibration`: the most training items that are scored, drawn at
    random (None: all). `without_heldout`: there may be no held-out items; then training items alone are the null.
    Raises TooFewItems if nothing is held out or the training set has fewer than three groups, DataError if items are
    not finite or of different shapes.
    """
    if not len(heldout) and not without_heldout:
        raise TooFewItems("nothing is held out to compare with.")
    if not len(train):
        raise TooFewItems("there are no training items.")
    check_items("Training items", train.data)
    if len(heldout):
        check_items("Held-out items", heldout.data, train.data)
    train, heldout, train_groups, heldout_groups = renumbered(train, heldout)
    rows = np.arange(len(train))
    if calibration is not None and calibration < len(train):
        rows = np.sort(np.random.default_rng(0).choice(rows, calibration, replace=False))
    nulls = []
    for bank in banks:
        to_train = scorer(bank, train.data, train.group)
        heldout_scores = to_train.score(heldout.data)
        left_out = to_train.score(train.data[rows], train.group[rows])
        tail = fit_tail(np.concatenate([heldout_scores.ratio, left_out.ratio]))
        nulls.append(Null(bank, to_train, heldout_scores, left_out, tail))
    leaks = _leaks(banks[0], train, heldout, rows)
    return Reference(
        train=train,
        heldout=heldout,
        train_groups=train_groups,
        heldout_groups=heldout_groups,
        nulls=tuple(nulls),
        leak_heldout=leaks[0],
        leak_train=leaks[1],
    )


def _leaks(bank: AnyBank, train: Items, heldout: Items, rows: np.ndarray) -> tuple[Leak | None, Leak | None]:
    """The leak detector's results for held-out items, and for these rows of the training set."""
    assert not isinstance(bank, AlignedBank)  # it has no features
    base = bank.base_features(train.data)
    of_heldout = leak(bank.base_features(heldout.data), base) if len(heldout) else None
    return of_heldout, leak(base[rows], base, train.group, train.group[rows])
