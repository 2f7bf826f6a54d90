"""Copy scores in blocks, so that other machines can compute some of them (see `tasks.common.blocks`).

`prepared` computes the scores that the stage is going to need, in blocks of items, of which each is searched in the whole
training set: so there is nothing to merge, and the scores have the same bits. Inside of it, a scorer that is asked for exactly
these items, training set and groups gives the prepared scores; anything else it computes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from tasks.common.arrays import Arrays
from tasks.common.blocks import computed, divided
from tasks.evaluate.memorization.copy_score import ITEMS, Scorer, Scores, TooFewItems, joined
from tasks.evaluate.memorization.invariances import AnyBank

_prepared: ContextVar[dict[str, Scores] | None] = ContextVar("prepared", default=None)


class Search(NamedTuple):
    """Items `[n, ...]` that are searched in a training set, in one bank; `own` as in Scorer.score."""

    bank: AnyBank
    train: np.ndarray
    groups: np.ndarray
    items: np.ndarray
    own: np.ndarray | None = None


@contextmanager
def prepared(
    searches: Callable[[], Sequence[Search]], scorer: Callable[[AnyBank, np.ndarray, np.ndarray], Scorer]
) -> Iterator[None]:
    """Compute the scores of the searches in blocks if the work of the stage is divided; else do nothing."""
    if not divided():
        yield
        return
    wanted = searches()
    made = cache(lambda number: scorer(*wanted[number][:3]))
    places = [(number, start) for number, search in enumerate(wanted) for start in range(0, len(search.items), ITEMS)]

    def block(number: int, start: int) -> Arrays:
        search, part = wanted[number], slice(start, start + ITEMS)
        own = None if search.own is None else search.own[part]
        try:
            return made(number).score(search.items[part], own)._asdict()
        except TooFewItems:
            return {}  # the stage tells

    parts: list[list[Arrays]] = [[] for _ in wanted]
    work = [partial(block, *place) for place in places]
    for (number, _), arrays in zip(places, computed(work, "copy scores"), strict=True):
        parts[number].append(arrays)
    scores = {
        _key(*search): joined([Scores(**arrays) for arrays in part])
        for search, part in zip(wanted, parts, strict=True)
        if all(part)
    }
    token = _prepared.set(scores)
    try:
        yield
    finally:
        _prepared.reset(token)


def remembering(scorer: Scorer, bank: AnyBank, train: np.ndarray, groups: np.ndarray) -> Scorer:
    """The scorer; inside of `prepared`, one that knows the prepared scores."""
    known = _prepared.get()
    return scorer if known is None else _Remembering(scorer, known, partial(_key, bank, train, groups))


class _Remembering:
    def __init__(self, scorer: Scorer, known: dict[str, Scores], key: Callable[..., str]) -> None:
        self._scorer, self._known, self._key = scorer, known, key

    def score(self, items: np.ndarray, own: np.ndarray | None = None) -> Scores:
        """See Scorer."""
        found = self._known.get(self._key(items, own))
        return self._scorer.score(items, own) if found is None else found


def _key(bank: AnyBank, train: np.ndarray, groups: np.ndarray, items: np.ndarray, own: np.ndarray | None = None) -> str:
    sha = hashlib.sha256(bank.name.encode())
    for array in (train, groups, items, own):
        if array is not None:
            sha.update(f"{array.dtype} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()
