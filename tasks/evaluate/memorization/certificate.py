"""The memorization certificate of one model: the verdict, a sentence, p-values, and the evidence behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import false_discovery_control

from tasks.config.params import Memorization
from tasks.evaluate.memorization import power, sentences
from tasks.evaluate.memorization.copy_score import Scores, TooFewItems
from tasks.evaluate.memorization.copy_test import Enough, SplitTest, Verdict, judge, split_exchangeability
from tasks.evaluate.memorization.evidence import BankResult, Evidence
from tasks.evaluate.memorization.invariances import AnyBank
from tasks.evaluate.memorization.missed_copies import ControlBank, limits
from tasks.evaluate.memorization.positive_control import Planter
from tasks.evaluate.memorization.reference import Items, Reference, check_items, renumbered
from tasks.evaluate.memorization.score_blocks import Search
from tasks.evaluate.memorization.scorers import score

ENOUGH = Enough()
PLANTED = 180


class BankScores(NamedTuple):
    """Scores of the samples in one bank: against the training set, and against training and held-out items together."""

    to_train: Scores
    to_all: Scores

    def rows(self, rows: np.ndarray) -> BankScores:
        """The scores of some of the samples."""
        return BankScores(self.to_train.rows(rows), self.to_all.rows(rows))


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
            "recognised": self.recognised,
            "share_bound": self.share_bound,
            "planted": self.power.planted,
            "planted_found": self.power.found,
            "power": self.power.share,
            "power_low": self.power.interval()[0],
            "power_high": self.power.interval()[1],
        }
        for result in self.banks:
            name = result.bank.name.replace(" ", "_")
            numbers[f"{name}.intrinsic_dimension"] = result.tail.dimension
            numbers[f"{name}.tail_fits"] = float(result.tail.fits)
            numbers[f"{name}.tail_misfit"] = result.tail.misfit
            numbers[f"{name}.smallest_copy"] = result.smallest_copy
            numbers[f"{name}.ratio_median"] = float(np.median(result.samples.ratio))
            numbers[f"{name}.distance_median"] = float(np.median(result.samples.first_distance))
            if heldout:
                numbers[f"{name}.ratio_median_heldout"] = float(np.median(result.null.heldout.ratio))
                numbers[f"{name}.distance_median_heldout"] = float(np.median(result.null.heldout.first_distance))
        for name, found in (("heldout", self.leak_heldout), ("train", self.leak_train)):
            if found is not None:
                numbers[f"dimension_consistency_{name}"] = found.consistency
        return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}


def score_samples(what: str, samples: np.ndarray, reference: Reference) -> list[BankScores]:
    """The scores of samples (`what` they are: "poses", "pictures") in every bank of the reference.

    Raises TooFewItems if there are no samples, DataError if they are not finite or not of the shape of the training items.
    """
    if not len(samples):
        raise TooFewItems("there are no samples.")
    train, heldout = reference.train, reference.heldout
    check_items(f"Generated {what}", samples, train.data)
    scored = []
    for null in reference.nulls:
        to_train = null.to_train.score(samples)
        if len(heldout):
            everything = np.concatenate([train.data, heldout.data]), np.concatenate([train.group, heldout.group])
            scored.append(BankScores(to_train, score(null.bank, samples, *everything)))
        else:
            scored.append(BankScores(to_train, to_train))
    return scored


def certificate_searches(
    banks: Sequence[AnyBank],
    train: Items,
    heldout: Items,
    plant: Callable[[], Planter],
    samples: Sequence[np.ndarray],
    planted: int,
) -> list[Search]:
    """The searches of `make_reference` and of `certify_samples` for sets of samples; none if there is too little to compare."""
    if not len(train) or not len(heldout):
        return []
    train, heldout, *_ = renumbered(train, heldout)
    everything = np.concatenate([train.data, heldout.data]), np.concatenate([train.group, heldout.group])
    control = plant()(planted, _planting()).items
    searches = []
    for bank in banks:
        in_train = partial(Search, bank, train.data, train.group)
        searches += [in_train(heldout.data), in_train(train.data, train.group), in_train(control)]
        for some in samples:
            searches += [in_train(some), Search(bank, *everything, some)]
    return searches


def _planting() -> np.random.Generator:
    return np.random.default_rng(0)


def certify(
    what: str,
    scored: Sequence[BankScores],
    reference: Reference,
    plant: Planter,
    rng: np.random.Generator,
    *,
    level: float = 0.01,
    false_discovery: float = 0.1,
    planted: int = PLANTED,
    needed: Enough = ENOUGH,
    needed_power: float = power.NEEDED,
) -> Certificate:
    """The certificate of samples from their scores, one BankScores per bank of the reference.

    `level`: of the verdict; `false_discovery`: rate of the list of copies (Benjamini & Hochberg 1995); `planted`: number of
    copies planted as a control, which are judged beside the samples; `needed`, `needed_power`: numbers of items, and share of
    planted copies recognised, below which the verdict is never CLEAN. Banks, and the tail and the split test, are joined by
    Bonferroni's inequality; without held-out items there is no split test.
    """
    train, heldout, nulls = reference.train, reference.heldout, reference.nulls
    group = np.concatenate([train.group, heldout.group])
    samples = len(scored[0].to_train.ratio)
    tests = 2 if len(heldout) else 1
    control = plant(planted, rng)

    results, control_banks, splits = [], [], []
    for null, scores in zip(nulls, scored, strict=True):
        results.append(BankResult(null, scores.to_train, null.tail.p_values(scores.to_train.ratio)))
        control_banks.append(ControlBank(null, null.to_train.score(control.items)))
        originals = group[scores.to_all.first]
        splits.append(
            split_exchangeability(scores.to_all.ratio, originals, reference.train_groups, reference.heldout_groups)
        )
    sample_p = np.minimum(1.0, len(nulls) * np.min([result.p for result in results], axis=0))
    tail_p = min(1.0, float(samples * sample_p.min()))
    best = min(splits, key=lambda split: split.p)
    split = SplitTest(best.originals, best.in_train, min(1.0, len(nulls) * best.p))
    alone = level / tests / samples  # a sample below it makes the verdict COPIES by itself
    control_p = np.minimum(1.0, len(nulls) * np.min([bank.p for bank in control_banks], axis=0))
    control_found = control_p < alone
    recognised = int((sample_p < alone).sum())
    copies = false_discovery_control(sample_p) <= false_discovery
    measured = power.of(control_found)
    p = min(1.0, tests * min(tail_p, split.p)) if len(heldout) else tail_p
    # Many loose copies can make the verdict COPIES though none is recognised alone; the bound must not deny them.
    known = max(recognised, int(copies.sum())) if p < level else recognised
    evidence = Evidence(
        what=what,
        p=p,
        tail_p=tail_p,
        split=split,
        sample_p=sample_p,
        copies=copies,
        leak_heldout=reference.leak_heldout,
        leak_train=reference.leak_train,
        recognised=recognised,
        power=measured,
        disguises=power.by_disguise(control.disguise, control_found),
        share_bound=power.share_bound(known, samples, measured),
        limits=limits(control_banks, control.disguise, ~control_found, alone / len(nulls)),
        banks=tuple(results),
        sizes=(len(train), len(heldout), samples),
    )
    lacking = needed.lacking(reference.train_groups, reference.heldout_groups, samples)
    verdict = judge(
        evidence.p,
        level,
        heldout_leaks=evidence.leak_heldout is not None and evidence.leak_heldout.found,
        train_repeats=evidence.leak_train is not None and evidence.leak_train.found,
        enough=not lacking,
        powerful=measured.share >= needed_power,
    )
    return Certificate(
        **vars(evidence), verdict=verdict, sentence=sentences.of(verdict, evidence, lacking, needed_power)
    )


def certify_samples(
    settings: Memorization, what: str, samples: np.ndarray, reference: Reference, plant: Planter
) -> Certificate:
    """The certificate of samples under the section `memorization` of the parameters.

    Raises TooFewItems if there is too little to compare.
    """
    return certify(
        what,
        score_samples(what, samples, reference),
        reference,
        plant,
        _planting(),
        level=settings.level,
        false_discovery=settings.false_discovery,
        planted=settings.planted,
        needed=Enough(settings.needed_groups, settings.needed_heldout_groups, settings.needed_samples),
        needed_power=settings.needed_power,
    )
