"""Which scorer goes with which bank."""

from __future__ import annotations

import numpy as np

from tasks.evaluate.memorization import aligned_score, score_blocks
from tasks.evaluate.memorization.aligned_score import AlignedScorer
from tasks.evaluate.memorization.copy_score import Scorer, Scores, ViewScorer
from tasks.evaluate.memorization.invariances import AlignedBank, AnyBank, colours


def scorer(bank: AnyBank, train: np.ndarray, groups: np.ndarray) -> Scorer:
    """Scores in a bank against `train` `[m, ...]`, whose groups are `groups` `[m]`."""
    made = AlignedScorer(train, groups) if isinstance(bank, AlignedBank) else ViewScorer(bank, train, groups)
    return score_blocks.remembering(made, bank, train, groups)


def score(
    bank: AnyBank, items: np.ndarray, train: np.ndarray, groups: np.ndarray, own: np.ndarray | None = None
) -> Scores:
    """Copy scores of `items` `[n, ...]` against `train`; `own`: the group of each item, left out of its search."""
    return scorer(bank, train, groups).score(items, own)


def laid_over(bank: AnyBank, item: np.ndarray, original: np.ndarray, invariance: int) -> tuple[np.ndarray, np.ndarray]:
    """An item as it was compared with its original in a bank, and the original: as a figure lays them over each other."""
    if isinstance(bank, AlignedBank):
        return aligned_score.laid_over(item, original), colours(original[None], size=None)[0]
    return bank.laid_over(item, original, invariance)


def shown(bank: AnyBank, item: np.ndarray) -> np.ndarray:
    """An item as a figure beside those of `laid_over` shows it."""
    whole: np.ndarray = (
        colours(item[None], size=None) if isinstance(bank, AlignedBank) else bank.aligned(bank.prepare(item[None]))
    )[0]
    return whole
