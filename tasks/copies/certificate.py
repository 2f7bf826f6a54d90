"""The memorization certificate of one model: verdict, one sentence, p-values, and the evidence behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.copies.copy_score import Scores, TooFewItems, null_scores, score
from tasks.copies.copy_test import (
    Leak,
    SplitTest,
    Tail,
    Verdict,
    benjamini_hochberg,
    fit_tail,
    judge,
    leak,
    proportion_interval,
    split_exchangeability,
)
from tasks.copies.views import Bank
from tasks.distances.estimate import check_features

# Planted copies: (training items, how many, random generator) -> items
Planter = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Items:
    """Pictures `[n, h, w, 3]` or poses `[n, 33, 3]` (float32) with the group of each: integers `[n]`."""

    data: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class BankResult:
    """What one bank saw: scores of the held-out and training nulls and of the samples, and the null's tail."""

    bank: Bank
    heldout: Scores
    left_out: Scores
    samples: Scores
    tail: Tail
    p: np.ndarray  # float64 [samples], of this bank alone

    @property
    def smallest_copy(self) -> float:
        """The distance that a copy may have from its original and still be found at 1% among the samples, in parts of
        the typical distance of a held-out item to its nearest training item."""
        ratio = self.tail.ratio_at(0.01 / len(self.p))
        typical = np.median(self.heldout.first_distance) if len(self.heldout.ratio) else np.nan
        return float(ratio * np.median(self.left_out.first_distance) / typical)


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
            numbers[f"{name}.ratio_median_heldout"] = float(np.median(result.heldout.ratio))
            numbers[f"{name}.distance_median"] = float(np.median(result.samples.first_distance))
            numbers[f"{name}.distance_median_heldout"] = float(np.median(result.heldout.first_distance))
        for name, found in (("heldout", self.leak_heldout), ("train", self.leak_train)):
            if found is not None:
                numbers[f"dimension_consistency_{name}"] = found.consistency
        return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}


def _small(p: float) -> str:
    return "p < 1e-12" if p < 1e-12 else f"p = {p:.2g}"


def _sentence(what: str, verdict: Verdict, certificate: dict[str, Any], train_groups: int, heldout_groups: int) -> str:
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
        missed = "" if certificate["planted_found"] else "; the copies planted as a control were not found"
        return (
            f"No copies were shown among {samples} generated {what}, but {train_groups} groups of training and "
            f"{heldout_groups} of held-out items are too few to say that there are none{missed}."
        )
    listed = f" ({copies} on the false-discovery list)" if copies else ""
    return (
        f"None of {samples} generated {what} is nearer to a training item than held-out items are "
        f"({_small(certificate['p'])}){listed}; {certificate['planted_found']} of {certificate['planted']} planted "
        f"copies were found."
    )


def certify(
    what: str,
    banks: Sequence[Bank],
    samples: np.ndarray,
    train: Items,
    heldout: Items,
    plant: Planter,
    rng: np.random.Generator,
    *,
    level: float = 0.01,
    false_discovery: float = 0.1,
    planted: float = 0.01,
) -> Certificate:
    """The certificate of `samples` (`what` they are: "poses", "pictures") against the training and held-out items.

    `level`: of the verdict; `false_discovery`: rate of the list of copies; `planted`: fraction of copies planted as a
    control. Banks and the two tests (tail, split) are joined by Bonferroni's inequality. Raises TooFewItems if there are
    no samples, nothing is held out or the training set has fewer than three groups, DataError if items are not finite.
    """
    if not len(samples) or not len(heldout):
        raise TooFewItems("there are no samples." if len(heldout) else "nothing is held out to compare with.")
    for name, data in (
        (f"Generated {what}", samples),
        ("Training items", train.data),
        ("Held-out items", heldout.data),
    ):
        check_features(name, data.reshape(len(data), -1))
    count = max(1, round(planted * len(samples)))
    copies_planted = plant(train.data, count, rng)
    names, group = np.unique(np.concatenate([train.group, heldout.group]), return_inverse=True)
    in_train = np.isin(np.arange(len(names)), group[: len(train)])
    train_groups = int(in_train.sum())
    # Training groups first, as the split test counts them; a held-out item in a training group counts as train.
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(~in_train, kind="stable")] = np.arange(len(names))
    group = rank[group]
    everything = np.concatenate([train.data, heldout.data])

    results, control_p, splits = [], np.ones(count), []
    for bank in banks:
        outside, left_out = null_scores(bank, train.data, group[: len(train)], heldout.data)
        tail = fit_tail(np.concatenate([outside.ratio, left_out.ratio]))
        scores = score(bank, samples, train.data, group[: len(train)])
        results.append(BankResult(bank, outside, left_out, scores, tail, tail.p_values(scores.ratio)))
        control = score(bank, copies_planted, train.data, group[: len(train)])
        control_p = np.minimum(control_p, len(banks) * tail.p_values(control.ratio))
        among_all = score(bank, samples, everything, group)
        splits.append(
            split_exchangeability(among_all.ratio, group[among_all.first], train_groups, len(names) - train_groups)
        )
    sample_p = np.minimum(1.0, len(banks) * np.min([result.p for result in results], axis=0))
    tail_p = min(1.0, float(len(samples) * sample_p.min()))
    best = min(splits, key=lambda split: split.p)
    split = SplitTest(best.originals, best.in_train, min(1.0, len(banks) * best.p))
    p = min(1.0, 2 * min(tail_p, split.p))

    base = banks[0].features(train.data)
    leak_heldout = leak(banks[0].features(heldout.data), base)
    leak_train = leak(base, base, own=group[: len(train)], groups=group[: len(train)])
    found = int((len(samples) * control_p < level / 2).sum())
    heldout_groups = len(names) - train_groups
    verdict = judge(
        p,
        level,
        heldout_leaks=leak_heldout is not None and leak_heldout.found,
        train_repeats=leak_train is not None and leak_train.found,
        train_groups=train_groups,
        heldout_groups=heldout_groups,
        control_found=found > 0,
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
        sentence=_sentence(what, verdict, fields, train_groups, heldout_groups),
        banks=tuple(results),
        sizes=(len(train), len(heldout), len(samples)),
        **fields,
    )
