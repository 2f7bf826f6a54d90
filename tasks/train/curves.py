"""The curves of a training as CSV files, which `dvc plots` draws and any other tool reads."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from tasks.train.early_stopping import relative_loss
from tasks.train.evaluation import Evaluation

LOSS, DENOISING_LOSS = "loss.csv", "denoising_loss.csv"


def write(
    folder: Path, loss: Sequence[Sequence[float]], evaluations: Sequence[Evaluation], sigmas: Sequence[float]
) -> None:
    """Write both curves against the number of images seen into a new folder.

    `loss`: (images, training loss). The denoising losses of the evaluations are averaged over `sigmas` (see
    `relative_loss`); the column `heldout` is empty if there are no held-out examples.
    """
    averaged = (
        (one.images, *("" if losses is None else relative_loss(sigmas, losses) for losses in (one.train, one.val)))
        for one in evaluations
    )
    _write(folder / LOSS, ("images", "loss"), loss)
    _write(folder / DENOISING_LOSS, ("images", "train", "heldout"), averaged)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
