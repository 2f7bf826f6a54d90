"""When a training stops and which weights it keeps. Both depend on the evaluations alone, so a restart decides the same."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tasks.config.optimisation import KeepName, KeptAverage, Stop
from tasks.models.inputs import DATA_SD
from tasks.train.evaluation import Evaluation

Keep = KeepName | KeptAverage

RISE = 0.01  # of the held-out loss above its lowest value: smaller changes may be the noise of a training that barely learns


def relative_loss(sigmas: Sequence[float], losses: Sequence[float]) -> float:
    """The mean over noise levels of loss / baseline; the baseline is a denoiser that knows only the variance of the data.

    Without noise levels, the single loss itself.
    """
    if not sigmas:
        return losses[0]
    baseline = [sigma**2 * DATA_SD**2 / (sigma**2 + DATA_SD**2) for sigma in sigmas]
    return sum(loss / worst for loss, worst in zip(losses, baseline, strict=True)) / len(baseline)


def score(evaluation: Evaluation, sigmas: Sequence[float], keep: Keep) -> float:
    """The criterion that the kept weights minimise. If it was not measured, the later evaluation scores better."""
    if keep == "validation_loss" and evaluation.val is not None:
        return relative_loss(sigmas, evaluation.val)
    if keep == "distance" and evaluation.distance is not None:
        return float(evaluation.distance.value)
    return -float(evaluation.images)


def best(evaluations: Sequence[Evaluation], sigmas: Sequence[float], keep: Keep) -> int:
    """The index of the evaluation whose weights are kept; of equal ones the latest. An average is computed at the last one."""
    if keep == "before_memorizing":
        return max(0, first_alarm(evaluations) - 1)
    return min(range(len(evaluations)), key=lambda i: (score(evaluations[i], sigmas, keep), -i))


def first_alarm(evaluations: Sequence[Evaluation]) -> int:
    """The index of the first evaluation with an alarming loss gap; their number if there is none."""
    return next((i for i, row in enumerate(evaluations) if _alarming(row)), len(evaluations))


def _alarming(evaluation: Evaluation) -> bool:
    return any(gap.alarming for gap in evaluation.gaps or [])


def kept(evaluations: Sequence[Evaluation], sigmas: Sequence[float], keep: Keep) -> str:
    """One sentence that says which weights are the model, and why."""
    chosen = evaluations[best(evaluations, sigmas, keep)]
    if isinstance(keep, KeptAverage):
        return f"The weights are their average of relative width {keep.ema:g} at image {chosen.images}."
    if keep == "last":
        reason = "the last"
    elif keep == "before_memorizing" and chosen.gaps is not None:
        reason = _reason(first_alarm(evaluations), len(evaluations))
    elif keep == "validation_loss" and chosen.val is not None:
        reason = "the lowest denoising loss on held-out examples"
    elif keep == "distance" and chosen.distance is not None:
        reason = "the smallest distance of samples to held-out data"
    else:
        reason = "the last, since there are too few held-out examples to choose by"
    return f"The weights are those of image {chosen.images}: {reason}."


def _reason(alarm: int, count: int) -> str:
    """Why the weights are those of the evaluation before the first alarm."""
    if alarm == count:
        return "the last, since no losses tell training examples from held-out ones"
    if alarm == 0:
        return "the first, although its losses tell training examples from held-out ones already"
    return "the last before the losses tell training examples from held-out ones"


def stop_reason(evaluations: Sequence[Evaluation], stop: Stop, sigmas: Sequence[float]) -> str | None:
    """One sentence that says why to stop now; None to continue."""
    if stop.memorizing and memorizing(evaluations, stop.patience):
        return f"The losses told training examples from held-out ones in {stop.patience} evaluations in a row."
    if stop.converged and converged(evaluations, stop.patience):
        return f"The distance to held-out data did not fall below its interval in {stop.patience} evaluations."
    if stop.turned and turned(evaluations, stop.patience, sigmas):
        return (
            f"The held-out loss was {RISE:.0%} above its lowest value or more in {stop.patience} evaluations in a row."
        )
    return None


def memorizing(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """Whether each of the last `patience` evaluations has a noise level whose loss gap is alarming."""
    last = evaluations[-patience:]
    return len(last) == patience and all(map(_alarming, last))


def turned(evaluations: Sequence[Evaluation], patience: int, sigmas: Sequence[float]) -> bool:
    """Whether all of the last `patience` held-out losses exceed the lowest one before them by RISE."""
    return has_turned([relative_loss(sigmas, row.val) for row in evaluations if row.val is not None], patience)


def has_turned(losses: Sequence[float], patience: int) -> bool:
    """`turned` for the losses themselves."""
    return len(losses) > patience and min(losses[-patience:]) > (1 + RISE) * min(losses[:-patience])


def converged(evaluations: Sequence[Evaluation], patience: int) -> bool:
    """Whether none of the last `patience` distances lies below the interval of the best one before them."""
    distances = [row.distance for row in evaluations if row.distance is not None]
    before, last = distances[:-patience], distances[-patience:]
    if not before:
        return False
    low = min(before, key=lambda distance: distance.value).low
    return all(math.isfinite(distance.value) and distance.value >= low for distance in last)
