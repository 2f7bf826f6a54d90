"""The curves of a training as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tasks.train import curves
from tasks.train.early_stopping import relative_loss
from tasks.train.evaluation import Evaluation

SIGMAS = (0.1, 1.0)


@pytest.mark.parametrize("held_out", [True, False])
def test_both_curves_against_images(tmp_path: Path, held_out: bool) -> None:
    evaluations = [
        Evaluation(10 * n, train=[0.1 / n, 0.2 / n], val=[0.2 / n, 0.4 / n] if held_out else None) for n in (1, 2)
    ]
    curves.write(tmp_path, [[5, 0.5], [10, 0.25]], evaluations, SIGMAS)
    with (tmp_path / curves.LOSS).open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"images": "5", "loss": "0.5"}, {"images": "10", "loss": "0.25"}]
    with (tmp_path / curves.DENOISING_LOSS).open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["images"] for row in table] == ["10", "20"]
    assert float(table[1]["train"]) == relative_loss(SIGMAS, [0.05, 0.1])
    assert [row["heldout"] for row in table] == [str(2 * float(row["train"])) if held_out else "" for row in table]
