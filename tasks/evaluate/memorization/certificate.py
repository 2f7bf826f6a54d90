"""The memorization certificate of one model: the verdict, a sentence, p-values, and the evidence behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, false_discovery_control

from tasks.evaluate.memorization.copy_score import Scores, TooFewItems, score
from tasks.evaluate.memorization.copy_test import (
    Enough,
    Leak,
    SplitTest,
    Tail,
    Verdict,
    judge,
    split_exchangeability,
)
from tasks.evaluate.memorization.invariances import Bank
from tasks.evaluate.memorization.reference import Items, Null, Reference, check_items

# Plants copies: (training items, how many, random generator) -> items
Planter = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
ENOUGH = Enough()


class BankScores(NamedTuple):
    """Scores of the samples in one bank: against the training set, and against training and held-out items together."""

    to_train: Scores
    to_all: Scores

    def rows(self, rows: np.ndarray) -> BankScores:
        """The scores of some of the samples."""
        return BankScores(self.to_train.rows(rows), self.to_all.rows(rows))


@dataclass(frozen=True)
class BankResult:
    """The result in one bank: the scores of the samples beside the null, and their p-values."""

    null: Null
    samples: Scores
    p: np.ndarray  # float64 [samples], of this bank alone

    @property
    def bank(self) -> Bank:
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
    planted: int
    planted_found: int
    banks: tuple[BankResult, ...]
    sizes: tuple[int, int, int]  # train, held-out, samples

    def copies_interval(self) -> tuple[float, float]:
        """The exact 95% interval of the share of copies (Clopper & Pearson 1934)."""
        interval = binomtest(int(self.copies.sum()), len(self.copies)).proportion_ci(0.95, method="exact")
        return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Certificate(Evidence):
    """The outcome of the copy test for one model."""

    verdict: Verdict
    sentence: str

    def best_bank(self, i: int) -> BankResult:
        """The bank in which sample `i` looks most like a copy."""
        return min(self.banks, key=lambda result: (result.p[i], result.samples.ratio[i]))

    def metrics(self) -> dict[str, float]:
        """Flat numbers for tracking, without those that could not be computed."""
        train, heldout, samples = self.sizes
        low, high = self.copies_interval()
        numbers: dict[str, float] = {
            "p": self.p,
            "p_tail": self.tail_p,
            "p_split": self.split.p,
            "samples": samples,
            "train": train,
            "heldout": heldout,
            "copies": int(self.copies.sum()),
            "copies_fraction": float(self.copies.mean()),
            "copies_fraction_low": low,
            "copies_fraction_high": high,
            "originals_hit": self.split.originals,
            "originals_hit_in_train": self.split.in_train,
            "planted": self.planted,
            "planted_found": self.planted_found,
        }
        for result in self.banks:
            name = result.bank.name.replace(" ", "_")
            numbers[f"{name}.intrinsic_dimension"] = result.tail.dimension
            numbers[f"{name}.tail_fits"] = float(result.tail.fits)
            numbers[f"{name}.tail_misfit"] = result.tail.misfit
            numbers[f"{name}.smallest_copy"] = result.smallest_copy
            numbers[f"{name}.ratio_median"] = float(np.median(result.samples.ratio))
            numbers[f"{name}.ratio_median_heldout"] = float(np.median(result.null.heldout.ratio))
            numbers[f"{name}.distance_median"] = float(np.median(result.samples.first_distance))
            numbers[f"{name}.distance_median_heldout"] = float(np.median(result.null.heldout.first_distance))
        for name, found in (("heldout", self.leak_heldout), ("train", self.leak_train)):
            if found is not None:
                numbers[f"dimension_consistency_{name}"] = found.consistency
        return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}


def _p_text(p: float) -> str:
    return "p < 1e-12" if p < 1e-12 else f"p = {p:.2g}"


def _unreliable_sentence(evidence: Evidence) -> str:
    heldout, train = evidence.leak_heldout, evidence.leak_train
    if heldout is not None and heldout.found:
        return (
            f"Held-out items have near-duplicates in the training set (dimension consistency "
            f"{heldout.consistency:.2f}, below 0.9), so that nothing can be said about copies: split by scene."
        )
    assert train is not None  # the only other reason for this verdict
    return (
        f"Training items have near-duplicates in other groups (dimension consistency {train.consistency:.2f}, "
        f"below 0.9), which would hide copies: put near-duplicates into one group."
    )


def _copies_sentence(evidence: Evidence) -> str:
    copies, samples = int(evidence.copies.sum()), len(evidence.copies)
    low, high = evidence.copies_interval()
    split = evidence.split
    finding = (
        f"{copies} of {samples} generated {evidence.what} ({copies / samples:.1%}, 95% interval {low:.1%} to {high:.1%}) "
        f"are nearer to a training item than held-out items ever are"
        if copies
        else f"The generated {evidence.what} come close to training items more often than to held-out ones"
    )
    return (
        f"{finding} ({_p_text(evidence.p)}); of {split.originals} originals that they come close to, {split.in_train} are in "
        f"train and {split.originals - split.in_train} held out ({_p_text(split.p)})."
    )


def _clean_sentence(evidence: Evidence) -> str:
    copies, samples = int(evidence.copies.sum()), len(evidence.copies)
    listed = f" ({copies} on the false-discovery list)" if copies else ""
    return (
        f"None of {samples} generated {evidence.what} is nearer to a training item than held-out items are "
        f"({_p_text(evidence.p)}){listed}; {evidence.planted_found} of {evidence.planted} planted copies were found. "
        f"Were more than {1 - 0.05 ** (1 / samples):.1%} near copies, one would be here 19 times in 20."
    )


def _sentence(verdict: Verdict, evidence: Evidence, lacking: list[str]) -> str:
    if verdict is Verdict.SPLIT_UNRELIABLE:
        return _unreliable_sentence(evidence)
    if verdict is Verdict.COPIES:
        return _copies_sentence(evidence)
    if verdict is Verdict.TOO_FEW:
        reasons = lacking + ["copies planted as a control were not found"] * (not evidence.planted_found)
        return (
            f"No copies were shown among {len(evidence.copies)} generated {evidence.what}, but this says little: "
            f"{'; '.join(reasons)}."
        )
    return _clean_sentence(evidence)


def score_samples(what: str, samples: np.ndarray, reference: Reference) -> list[BankScores]:
    """The scores of samples (`what` they are: "poses", "pictures") in every bank of the reference.

    Raises TooFewItems if there are no samples, DataError if they are not finite or not of the shape of the training items.
    """
    if not len(samples):
        raise TooFewItems("there are no samples.")
    train, heldout = reference.train, reference.heldout
    check_items(f"Generated {what}", samples, train.data)
    everything = Items(np.concatenate([train.data, heldout.data]), np.concatenate([train.group, heldout.group]))
    return [
        BankScores(*(score(null.bank, samples, base.data, base.group) for base in (train, everything)))
        for null in reference.nulls
    ]


def certify(
    what: str,
    scored: Sequence[BankScores],
    reference: Reference,
    plant: Planter,
    rng: np.random.Generator,
    *,
    level: float = 0.01,
    false_discovery: float = 0.1,
    planted: float = 0.01,
    needed: Enough = ENOUGH,
) -> Certificate:
    """The certificate of samples from their scores, one BankScores per bank of the reference.

    `level`: of the verdict; `false_discovery`: rate of the list of copies (Benjamini & Hochberg 1995); `planted`: share of
    copies planted as a control; `needed`: numbers below which the verdict is never CLEAN. Banks, and the tail and the split
    test, are joined by Bonferroni's inequality.
    """
    train, heldout, nulls = reference.train, reference.heldout, reference.nulls
    group = np.concatenate([train.group, heldout.group])
    samples = len(scored[0].to_train.ratio)
    planted_count = max(1, round(planted * samples))
    planted_copies = plant(train.data, planted_count, rng)

    results, control_p, splits = [], np.ones(planted_count), []
    for null, scores in zip(nulls, scored, strict=True):
        results.append(BankResult(null, scores.to_train, null.tail.p_values(scores.to_train.ratio)))
        control = score(null.bank, planted_copies, train.data, train.group)
        control_p = np.minimum(control_p, len(nulls) * null.tail.p_values(control.ratio))
        originals = group[scores.to_all.first]
        splits.append(
            split_exchangeability(scores.to_all.ratio, originals, reference.train_groups, reference.heldout_groups)
        )
    sample_p = np.minimum(1.0, len(nulls) * np.min([result.p for result in results], axis=0))
    tail_p = min(1.0, float(samples * sample_p.min()))
    best = min(splits, key=lambda split: split.p)
    split = SplitTest(best.originals, best.in_train, min(1.0, len(nulls) * best.p))
    evidence = Evidence(
        what=what,
        p=min(1.0, 2 * min(tail_p, split.p)),
        tail_p=tail_p,
        split=split,
        sample_p=sample_p,
        copies=false_discovery_control(sample_p) <= false_discovery,
        leak_heldout=reference.leak_heldout,
        leak_train=reference.leak_train,
        planted=planted_count,
        planted_found=int((samples * control_p < level / 2).sum()),
        banks=tuple(results),
        sizes=(len(train), len(heldout), samples),
    )
    lacking = needed.lacking(reference.train_groups, reference.heldout_groups, samples)
    verdict = judge(
        evidence.p,
        level,
        heldout_leaks=evidence.leak_heldout is not None and evidence.leak_heldout.found,
        train_repeats=evidence.leak_train is not None and evidence.leak_train.found,
        enough=evidence.planted_found > 0 and not lacking,
    )
    return Certificate(**vars(evidence), verdict=verdict, sentence=_sentence(verdict, evidence, lacking))
