"""What samples are compared with: training and held-out items, and the scores of items that nobody generated.

Made once and used for every set of samples that is judged against the same data: it is the larger part of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tasks.common.errors import DataError
from tasks.evaluate.memorization.copy_score import Scores, TooFewItems, null_scores
from tasks.evaluate.memorization.copy_test import Leak, Tail, fit_tail, leak
from tasks.evaluate.memorization.invariances import Bank
from tasks.metrics.estimate import check_features


@dataclass(frozen=True)
class Items:
    """Pictures `[n, h, w, 3]` or poses `[n, 33, 3]` (float32) with the group of each: integers `[n]`."""

    data: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Null:
    """Scores of one bank for items that nobody generated, and the tail fitted to both kinds together."""

    bank: Bank
    heldout: Scores  # to train
    left_out: Scores  # of training items, to the other groups of train
    tail: Tail


@dataclass(frozen=True)
class Reference:
    """Training and held-out items, with their nulls in every bank and what the leak detector saw.

    Groups are numbered anew, those of the training set first: 0 .. train_groups - 1. A held-out item whose group is also in
    train counts as train.
    """

    train: Items
    heldout: Items
    train_groups: int
    heldout_groups: int
    nulls: tuple[Null, ...]
    leak_heldout: Leak | None
    leak_train: Leak | None


def check_items(name: str, data: np.ndarray, like: np.ndarray | None = None) -> None:
    """Raises DataError if items are not finite, or not of the shape of those they are compared with."""
    if like is not None and data.shape[1:] != like.shape[1:]:
        shapes = [" x ".join(map(str, some.shape[1:])) for some in (data, like)]
        raise DataError(f"{name} are {shapes[0]} numbers each, and the training items {shapes[1]}.")
    check_features(name, data.reshape(len(data), -1))


def reference(banks: Sequence[Bank], train: Items, heldout: Items) -> Reference:
    """The reference of a copy test in these banks; the leak detector looks at the first.

    Raises TooFewItems if nothing is held out or the training set has fewer than three groups, DataError if items are
    not finite or of different shapes.
    """
    if not len(heldout):
        raise TooFewItems("nothing is held out to compare with.")
    if not len(train):
        raise TooFewItems("there are no training items.")
    check_items("Training items", train.data)
    check_items("Held-out items", heldout.data, train.data)
    names, group = np.unique(np.concatenate([train.group, heldout.group]), return_inverse=True)
    in_train = np.isin(np.arange(len(names)), group[: len(train)])
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(~in_train, kind="stable")] = np.arange(len(names))
    group = rank[group]
    train, heldout = Items(train.data, group[: len(train)]), Items(heldout.data, group[len(train) :])
    nulls = []
    for bank in banks:
        outside, left_out = null_scores(bank, train.data, train.group, heldout.data)
        nulls.append(Null(bank, outside, left_out, fit_tail(np.concatenate([outside.ratio, left_out.ratio]))))
    base = banks[0].features(train.data)
    train_groups = int(in_train.sum())
    return Reference(
        train=train,
        heldout=heldout,
        train_groups=train_groups,
        heldout_groups=len(names) - train_groups,
        nulls=tuple(nulls),
        leak_heldout=leak(banks[0].features(heldout.data), base),
        leak_train=leak(base, base, own=train.group, groups=train.group),
    )
