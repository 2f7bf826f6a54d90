"""Everything that the verdict of one copy test rests on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from tasks.evaluate.memorization.copy_score import Scores
from tasks.evaluate.memorization.copy_test import Leak, SplitTest, Tail
from tasks.evaluate.memorization.invariances import AnyBank
from tasks.evaluate.memorization.missed_copies import Limit
from tasks.evaluate.memorization.power import Power
from tasks.evaluate.memorization.reference import Null


@dataclass(frozen=True)
class BankResult:
    """The result in one bank: the scores of the samples beside the null, and their p-values."""

    null: Null
    samples: Scores
    p: np.ndarray  # float64 [samples], of this bank alone

    @property
    def bank(self) -> AnyBank:
        """The bank itself."""
        return self.null.bank

    @property
    def tail(self) -> Tail:
        """The tail of the null."""
        return self.null.tail

    @property
    def smallest_copy(self) -> float:
        """The largest distance between a copy and its original at which the copy, one in a hundred samples, is found.

        In units of the typical distance of a held-out item to its nearest training item.
        """
        ratio = self.tail.ratio_at(0.01 / len(self.p))
        if not len(self.null.heldout.first_distance):
            return float(ratio)
        return float(ratio * np.median(self.null.left_out.first_distance) / np.median(self.null.heldout.first_distance))


@dataclass(frozen=True)
class Evidence:
    """Everything the verdict of one model rests on."""

    what: str  # what the samples are, for sentences: "poses", "pictures"
    p: float  # of the whole set of samples: tail and split test together
    tail_p: float
    split: SplitTest
    sample_p: np.ndarray  # float64 [samples], over banks
    copies: np.ndarray  # bool [samples], at the false-discovery rate
    leak_heldout: Leak | None
    leak_train: Leak | None
    recognised: int  # samples each of which alone would make the verdict COPIES
    power: Power  # the share of planted copies that are recognised by the same rule
    disguises: dict[str, Power]
    share_bound: float  # largest share of copies among the samples, at 95% confidence; 1 if nothing can be said
    limits: tuple[Limit, ...]  # what hid the planted copies that were missed
    banks: tuple[BankResult, ...]
    sizes: tuple[int, int, int]  # train, held-out, samples

    def copies_interval(self) -> tuple[float, float]:
        """The exact 95% interval of the share of copies (Clopper & Pearson 1934)."""
        interval = binomtest(int(self.copies.sum()), len(self.copies)).proportion_ci(0.95, method="exact")
        return float(interval.low), float(interval.high)
