"""The memorization certificate of one model: verdict, one sentence, p-values, and the evidence behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tasks.evaluate.memorization.copy_score import Scores, TooFewItems, score
from tasks.evaluate.memorization.copy_test import (
    Enough,
    Leak,
    SplitTest,
    Tail,
    Verdict,
    benjamini_hochberg,
    judge,
    proportion_interval,
    split_exchangeability,
)
from tasks.evaluate.memorization.invariances import Bank
from tasks.evaluate.memorization.reference import Items, Null, Reference, check_items

# Planted copies: (training items, how many, random generator) -> items
Planter = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
ENOUGH = Enough()


class Scored(NamedTuple):
    """What one bank sees in the samples: their scores against train, and against train and held-out items together."""

    to_train: Scores
    to_all: Scores

    def rows(self, rows: np.ndarray) -> Scored:
        """Some of the samples."""
        return Scored(*(Scores(*(column[rows] for column in scores)) for scores in self))


@dataclass(frozen=True)
class BankResult:
    """What one bank saw: the scores of the samples beside the null, and their p-values."""

    null: Null
    samples: Scores
    p: np.ndarray  # float64 [samples], of this bank alone

    @property
    def bank(self) -> Bank:
        """The bank that looked."""
        return self.null.bank

    @property
    def tail(self) -> Tail:
        """The null's tail."""
        return self.null.tail

    @property
    def smallest_copy(self) -> float:
        """The distance that a copy may have from its original and still be found at 1% among the samples, in parts of
        the typical distance of a held-out item to its nearest training item."""
        ratio = self.tail.ratio_at(0.01 / len(self.p))
        return float(ratio * np.median(self.null.left_out.first_distance) / np.median(self.null.heldout.first_distance))


@dataclass(frozen=True)
class Certificate:
    """The outcome of the copy test for one model."""

    verdict: Verdict
    sentence: str
    p: float  # of the whole sample set: tail and split test together
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

    def best_bank(self, i: int) -> BankResult:
        """The bank in which sample `i` looks most like a copy."""
        return min(self.banks, key=lambda result: (result.p[i], result.samples.ratio[i]))

    def metrics(self) -> dict[str, float]:
        """Flat numbers for tracking; what could not be computed is not there."""
        train, heldout, samples = self.sizes
        low, high = proportion_interval(int(self.copies.sum()), samples)
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


def _small(p: float) -> str:
    return "p < 1e-12" if p < 1e-12 else f"p = {p:.2g}"


def _sentence(what: str, verdict: Verdict, certificate: dict[str, Any], lacking: list[str]) -> str:
    copies, samples = int(certificate["copies"].sum()), len(certificate["copies"])
    split: SplitTest = certificate["split"]
    if verdict is Verdict.SPLIT_UNRELIABLE:
        heldout: Leak | None = certificate["leak_heldout"]
        if heldout is not None and heldout.found:
            return (
                f"Held-out items have near-duplicates in the training set (dimension consistency "
                f"{heldout.consistency:.2f}, below 0.9), so that nothing can be said about copies: split by scene."
            )
        return (
            f"Training items have near-duplicates in other groups (dimension consistency "
            f"{certificate['leak_train'].consistency:.2f}, below 0.9), which would hide copies: put near-duplicates "
            f"into one group."
        )
    if verdict is Verdict.COPIES:
        low, high = proportion_interval(copies, samples)
        listed = (
            f"{copies} of {samples} generated {what} ({copies / samples:.1%}, 95% interval {low:.1%} to {high:.1%}) "
            f"are nearer to a training item than held-out items ever are"
            if copies
            else f"The generated {what} come close to training items more often than to held-out ones"
        )
        return (
            f"{listed} ({_small(certificate['p'])}); of {split.originals} originals that they come close to, "
            f"{split.in_train} are in train and {split.originals - split.in_train} held out "
            f"({_small(split.p)})."
        )
    if verdict is Verdict.TOO_FEW:
        lack = lacking + ["copies planted as a control were not found"] * (not certificate["planted_found"])
        return f"No copies were shown among {samples} generated {what}, but this says little: {'; '.join(lack)}."
    listed = f" ({copies} on the false-discovery list)" if copies else ""
    return (
        f"None of {samples} generated {what} is nearer to a training item than held-out items are "
        f"({_small(certificate['p'])}){listed}; {certificate['planted_found']} of {certificate['planted']} planted "
        f"copies were found. Were more than {1 - 0.05 ** (1 / samples):.1%} near copies, one would be here 19 times in 20."
    )


def score_samples(what: str, samples: np.ndarray, reference: Reference) -> list[Scored]:
    """The scores of samples (`what` they are: "poses", "pictures") in every bank of the reference.

    Raises TooFewItems if there are no samples, DataError if they are not finite or not of the shape of the training items.
    """
    if not len(samples):
        raise TooFewItems("there are no samples.")
    train, heldout = reference.train, reference.heldout
    check_items(f"Generated {what}", samples, train.data)
    everything = Items(np.concatenate([train.data, heldout.data]), np.concatenate([train.group, heldout.group]))
    return [
        Scored(*(score(null.bank, samples, base.data, base.group) for base in (train, everything)))
        for null in reference.nulls
    ]


def certify(
    what: str,
    scored: Sequence[Scored],
    reference: Reference,
    plant: Planter,
    rng: np.random.Generator,
    *,
    level: float = 0.01,
    false_discovery: float = 0.1,
    planted: float = 0.01,
    needed: Enough = ENOUGH,
) -> Certificate:
    """The certificate of samples from their scores.

    `level`: of the verdict; `false_discovery`: rate of the list of copies; `planted`: fraction of copies planted as a
    control; `needed`: numbers without which the absence of copies is not said. Banks and the two tests (tail, split) are
    joined by Bonferroni's inequality.
    """
    train, heldout, nulls = reference.train, reference.heldout, reference.nulls
    group = np.concatenate([train.group, heldout.group])
    samples = len(scored[0].to_train.ratio)
    count = max(1, round(planted * samples))
    copies_planted = plant(train.data, count, rng)

    results, control_p, splits = [], np.ones(count), []
    for null, here in zip(nulls, scored, strict=True):
        results.append(BankResult(null, here.to_train, null.tail.p_values(here.to_train.ratio)))
        control = score(null.bank, copies_planted, train.data, train.group)
        control_p = np.minimum(control_p, len(nulls) * null.tail.p_values(control.ratio))
        originals = group[here.to_all.first]
        splits.append(
            split_exchangeability(here.to_all.ratio, originals, reference.train_groups, reference.heldout_groups)
        )
    sample_p = np.minimum(1.0, len(nulls) * np.min([result.p for result in results], axis=0))
    tail_p = min(1.0, float(samples * sample_p.min()))
    best = min(splits, key=lambda split: split.p)
    split = SplitTest(best.originals, best.in_train, min(1.0, len(nulls) * best.p))
    p = min(1.0, 2 * min(tail_p, split.p))
    found = int((samples * control_p < level / 2).sum())
    leak_heldout, leak_train = reference.leak_heldout, reference.leak_train
    lacking = needed.lacking(reference.train_groups, reference.heldout_groups, samples)
    verdict = judge(
        p,
        level,
        heldout_leaks=leak_heldout is not None and leak_heldout.found,
        train_repeats=leak_train is not None and leak_train.found,
        enough=found > 0 and not lacking,
    )
    fields: dict[str, Any] = {
        "p": p,
        "tail_p": tail_p,
        "split": split,
        "sample_p": sample_p,
        "copies": benjamini_hochberg(sample_p, false_discovery),
        "leak_heldout": leak_heldout,
        "leak_train": leak_train,
        "planted": count,
        "planted_found": found,
    }
    return Certificate(
        verdict=verdict,
        sentence=_sentence(what, verdict, fields, lacking),
        banks=tuple(results),
        sizes=(len(train), len(heldout), samples),
        **fields,
    )
