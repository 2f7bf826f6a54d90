"""The curves of a training as CSV files, which `dvc plots` draws and any other tool reads."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.train.early_stopping import relative_loss

LOSS, DENOISING_LOSS = "loss.csv", "denoising_loss.csv"


def write(
    folder: Path, loss: Sequence[Sequence[float]], rows: Sequence[dict[str, Any]], sigmas: Sequence[float]
) -> None:
    """Write both curves against the number of images seen into a new folder.

    `loss`: (images, training loss). `rows`: the evaluations, whose denoising losses are averaged over `sigmas` (see
    `relative_loss`); the column `heldout` is empty if there are no held-out examples.
    """
    averaged = (
        (row["images"], *(relative_loss(sigmas, row[split]) if split in row else "" for split in ("train", "val")))
        for row in rows
    )
    _write(folder / LOSS, ("images", "loss"), loss)
    _write(folder / DENOISING_LOSS, ("images", "train", "heldout"), averaged)


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
