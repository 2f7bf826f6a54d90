"""Why planted copies were missed: what limits the power of the copy test on these data.

For each missed copy it is asked what would have to be different for it to be recognised. The first answer that holds counts:

    RANKS       if p-values were not mere ranks: the null ratios follow no power law, and there are too few of them
    DUPLICATES  if no training item had a near-duplicate in another group: its second nearest item were as far away as
    usual, and the lower tail of the null were not heavier than its middle
    DIMENSION   if the data had sixteen dimensions: items that vary in few ways come close to each other by chance
    DISGUISE    none of these: it differs too much from its original
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tasks.evaluate.memorization.copy_score import Scores
from tasks.evaluate.memorization.reference import Null

RICH = 16  # dimensions in which near copies are always recognised (docs/evaluation.md)


class Cause(StrEnum):
    """What hid a planted copy."""

    RANKS = "ranks"
    DUPLICATES = "duplicates"
    DIMENSION = "dimension"
    DISGUISE = "disguise"


@dataclass(frozen=True)
class Limit:
    """One cause, how many of the missed copies it hid, and the disguises of those copies, the most frequent first."""

    cause: Cause
    copies: int
    missed: int  # by any cause
    disguises: tuple[str, ...]
    dimension: float  # the largest that any bank sees in the data


@dataclass(frozen=True)
class ControlBank:
    """The scores of the planted copies in one bank."""

    null: Null
    scores: Scores

    @property
    def p(self) -> np.ndarray:
        """p-values float64 `[planted]`, of this bank alone."""
        return self.null.tail.p_values(self.scores.ratio)


def limits(banks: Sequence[ControlBank], disguises: Sequence[str], missed: np.ndarray, p: float) -> tuple[Limit, ...]:
    """The causes by which copies were `missed` (bool `[planted]`), the most frequent first.

    `p`: the p-value in one bank below which a copy is recognised.
    """
    by_cause = {
        Cause.RANKS: _any([_found_by_law(bank, p) for bank in banks if not bank.null.tail.fits], missed),
        Cause.DUPLICATES: _any([_found_alone(bank, p) for bank in banks], missed),
        Cause.DIMENSION: _any([_found_in_rich_data(bank, p) for bank in banks], missed),
        Cause.DISGUISE: missed.copy(),
    }
    dimension = max(bank.null.tail.dimension for bank in banks)
    open_ = missed.copy()
    found = []
    for cause, hidden in by_cause.items():
        rows = np.flatnonzero(hidden & open_)
        open_ &= ~hidden
        if len(rows):
            names = Counter(disguises[row] for row in rows.tolist())
            ordered = tuple(name for name, _ in names.most_common())
            found.append(Limit(cause, len(rows), int(missed.sum()), ordered, dimension))
    return tuple(sorted(found, key=lambda limit: -limit.copies))


def _any(found: list[np.ndarray], missed: np.ndarray) -> np.ndarray:
    return np.any(found, axis=0) & missed if found else np.zeros_like(missed)


def _found_by_law(bank: ControlBank, p: float) -> np.ndarray:
    """Copies that would be recognised if the power law were trusted although it does not fit."""
    tail = bank.null.tail
    share = (tail.count + 1) / (tail.size + 1)
    law: np.ndarray = share * (np.minimum(bank.scores.ratio, tail.start) / tail.start) ** tail.dimension < p
    return law


def _found_alone(bank: ControlBank, p: float) -> np.ndarray:
    """Copies that would be recognised if their second nearest item were as far away as in the median, by a law with the
    exponent that the median of the null ratios has."""
    left_out = bank.null.left_out
    second = np.maximum(bank.scores.second_distance, np.median(left_out.second_distance))
    exponent = max(bank.null.tail.dimension, np.log(2) / max(-np.log(np.median(left_out.ratio)), 1e-9))
    alone: np.ndarray = np.clip(bank.scores.first_distance / second, 1e-9, 1) ** exponent < p
    return alone


def _found_in_rich_data(bank: ControlBank, p: float) -> np.ndarray:
    """Copies that would be recognised if the null ratios had the exponent RICH."""
    rich: np.ndarray = bank.scores.ratio**RICH < p
    return rich
