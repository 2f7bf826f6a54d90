"""The verdict in words: one short paragraph that says what was measured."""

from __future__ import annotations

from tasks.common.text import enumerated
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.evidence import Evidence
from tasks.evaluate.memorization.missed_copies import Cause, Limit

FEW = 0.2  # causes of fewer of the missed copies are not mentioned


def of(verdict: Verdict, evidence: Evidence, lacking: list[str], needed_power: float) -> str:
    """The sentences for a verdict. `lacking`: what there is too little of; `needed_power`: see `certificate.certify`."""
    match verdict:
        case Verdict.SPLIT_UNRELIABLE:
            return _unreliable(evidence)
        case Verdict.COPIES:
            return f"{_copies(evidence)} {_bound(evidence)}"
        case Verdict.TOO_FEW:
            none = f"No copies were found among {_count(evidence)}, but this says little"
            return f"{none}: there are only {enumerated(lacking)}."
        case Verdict.LOW_POWER:
            return _low_power(evidence, needed_power)
        case Verdict.CLEAN:
            return f"No copies were found among {_count(evidence)}. {_power(evidence)} {_bound(evidence)}{_listed(evidence)}"


def _count(evidence: Evidence) -> str:
    return f"{len(evidence.copies)} generated {evidence.what}"


def p_text(p: float) -> str:
    """A p-value for people."""
    return "p < 1e-12" if p < 1e-12 else f"p = {p:.2g}"


def _power(evidence: Evidence) -> str:
    low, high = evidence.power.interval()
    return (
        f"Copies that were planted as a control are recognised: {evidence.power.found} of {evidence.power.planted} "
        f"({evidence.power.share:.0%}, 95% interval {low:.0%} to {high:.0%})."
    )


def _bound(evidence: Evidence) -> str:
    """What is left of the question how many copies there may be."""
    if evidence.share_bound >= 1 and evidence.copies.any():
        return f"All of the generated {evidence.what} may be copies."
    if evidence.share_bound >= 1:
        return f"How many of the generated {evidence.what} are copies cannot be bounded."
    return (
        f"With 95% confidence at most {evidence.share_bound:.1%} of the generated {evidence.what} are copies, those that the "
        "test misses included."
    )


def _listed(evidence: Evidence) -> str:
    listed = int(evidence.copies.sum())
    if not listed:
        return ""
    return f" {listed} {'is' if listed == 1 else 'are'} close enough to a training item to be looked at."


def _unreliable(evidence: Evidence) -> str:
    heldout, train = evidence.leak_heldout, evidence.leak_train
    if heldout is not None and heldout.found:
        return (
            "The held-out items contain near-duplicates of training items (dimension consistency "
            f"{heldout.consistency:.2f}, below 0.9), so nothing can be said about copies. Split by scene."
        )
    assert train is not None  # the only other reason for this verdict
    return (
        "The training set contains near-duplicates in different groups (dimension consistency "
        f"{train.consistency:.2f}, below 0.9), and they would hide copies. Put near-duplicates into one group."
    )


def _copies(evidence: Evidence) -> str:
    copies, samples = int(evidence.copies.sum()), len(evidence.copies)
    low, high = evidence.copies_interval()
    split = evidence.split
    if copies:
        finding = (
            f"{copies} of {_count(evidence)} ({copies / samples:.1%}, 95% interval {low:.1%} to {high:.1%}) are nearer to a "
            f"training item than unseen items ever are ({p_text(evidence.p)})."
        )
    else:
        finding = (
            f"The generated {evidence.what} come close to training items more often than to held-out ones "
            f"({p_text(evidence.p)})."
        )
    if not evidence.sizes[1]:
        return finding
    return (
        f"{finding} Of {split.originals} originals that they come close to, {split.in_train} are in the training set and "
        f"{split.originals - split.in_train} held out ({p_text(split.p)})."
    )


def _low_power(evidence: Evidence, needed_power: float) -> str:
    low, high = evidence.power.interval()
    text = (
        f"No copies were found among {_count(evidence)}, but the test would miss too many: it recognises "
        f"{evidence.power.found} of {evidence.power.planted} planted copies ({evidence.power.share:.0%}, "
        f"95% interval {low:.0%} to {high:.0%}), and {needed_power:.0%} are needed to call a model clean. {_bound(evidence)}"
    )
    causes = [_cause(limit, evidence.what) for limit in evidence.limits if limit.copies >= FEW * limit.missed]
    return " ".join([text, *causes])


def _cause(limit: Limit, what: str) -> str:
    """Why copies are missed, and what the user can do."""
    share = f"{limit.copies} of the {limit.missed} missed copies"
    poses = "pose" in what
    match limit.cause:
        case Cause.DUPLICATES:
            if poses:
                return (
                    f"{share} are hidden because another person in the training set has nearly the same pose. Where people do "
                    "the same exercise this cannot be avoided; where it is the same photograph, put both into one group."
                )
            return (
                f"{share} are hidden by a near-duplicate of the original that is in another group of the training set. Remove "
                "near-duplicates, or put them into one group."
            )
        case Cause.RANKS:
            return (
                f"{share} are hidden because there are too few real items to know how near unrelated ones come. Add training "
                "or held-out items."
            )
        case Cause.DIMENSION:
            return (
                f"{share} are hidden because the data vary in few ways (dimension {limit.dimension:.1f}), so that unrelated "
                "items come close by chance. More varied data help; more items of the same kind do not."
            )
        case Cause.DISGUISE:
            return f"{share} differ too much from their originals ({enumerated(limit.disguises, most=3)})."
