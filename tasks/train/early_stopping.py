"""When to stop, and which weights to keep: decided from the rows of the watches alone, so that a restart decides the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from tasks.config.optimisation import Stop
from tasks.metrics.membership_inference import LevelGap
from tasks.models.modality import DATA_SD

Keep = Literal["validation_loss", "distance", "last"]


def relative_loss(sigmas: Sequence[float], losses: Sequence[float]) -> float:
    """The mean over noise levels of the loss over that of a denoiser which knows nothing but the data's variance."""
    blind = [sigma**2 * DATA_SD**2 / (sigma**2 + DATA_SD**2) for sigma in sigmas]
    return sum(loss / worst for loss, worst in zip(losses, blind, strict=True)) / len(blind)


def score(row: dict[str, Any], sigmas: Sequence[float], keep: Keep) -> float:
    """What is to be small for a watch's weights to be kept; the later watch is better where the criterion is missing."""
    if keep == "validation_loss" and "val" in row:
        return relative_loss(sigmas, row["val"])
    if keep == "distance" and "distance" in row:
        return float(row["distance"]["value"])
    return -float(row["images"])


def best(rows: Sequence[dict[str, Any]], sigmas: Sequence[float], keep: Keep) -> int:
    """The number of the watch whose weights are kept."""
    return min(range(len(rows)), key=lambda i: (score(rows[i], sigmas, keep), -i))


def kept(rows: Sequence[dict[str, Any]], sigmas: Sequence[float], keep: Keep) -> str:
    """Which watch's weights are the model, and why, in words."""
    row = rows[best(rows, sigmas, keep)]
    measured = {
        "validation_loss": ("val", "the lowest denoising loss on held-out examples"),
        "distance": ("distance", "the smallest distance of samples to held-out data"),
    }
    if keep == "last":
        why = "the last"
    else:
        needed, words = measured[keep]
        why = words if needed in row else "the last, since there are too few held-out examples to choose by"
    return f"The weights are those of image {row['images']}: {why}."


def reason(rows: Sequence[dict[str, Any]], stop: Stop) -> str | None:
    """Why to stop now, in words; None to go on."""
    if stop.memorizing and memorizing(rows, stop.patience):
        return f"The losses told training examples from held-out ones in {stop.patience} watches in a row."
    if stop.converged and converged(rows, stop.patience):
        return f"The distance to held-out data has not fallen beyond its interval in {stop.patience} watches."
    return None


def memorizing(rows: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether in each of the last watches the gap between training and held-out loss was beyond doubt at some level."""
    last = rows[-patience:]
    return len(last) == patience and all(any(LevelGap(**gap).alarming for gap in row.get("gaps", [])) for row in last)


def converged(rows: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether none of the last distances lies below the interval of the best before them."""
    distances = [row["distance"] for row in rows if "distance" in row]
    before, last = distances[:-patience], distances[-patience:]
    if not before:
        return False
    low = min(before, key=lambda d: float(d["value"]))["low"]
    return all(math.isfinite(d["value"]) and d["value"] >= low for d in last)
