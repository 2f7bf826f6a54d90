"""When a training stops and which weights it keeps: rules on what was watched."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core.training import ema
from tasks.common import checkpoint
from tasks.config.optimisation import Stop
from tasks.train import early_stopping, post_hoc_ema
from tasks.train.evaluation import SIGMAS


def _row(
    images: int, val: float = 0.1, distance: tuple[float, float] | None = None, alarming: bool = False
) -> dict[str, Any]:
    """A watch: losses a multiple of a blind denoiser's, a distance with the reach of its interval, a gap."""
    blind = [s**2 * 0.25 / (s**2 + 0.25) for s in SIGMAS]
    gap = {
        "sigma": 0.1,
        "train": 0.1,
        "heldout": 0.2,
        "auc": 0.9,
        "low": 0.8 if alarming else 0.4,
        "high": 1.0,
        "p": 0.001,
    }
    row: dict[str, Any] = {"images": images, "val": [val * b for b in blind], "gaps": [gap]}
    if distance is not None:
        value, reach = distance
        row["distance"] = {"value": value, "low": value - reach, "high": value + reach}
    return row


def test_relative_loss_is_one_for_a_denoiser_that_knows_only_the_variance() -> None:
    assert early_stopping.relative_loss(SIGMAS, [s**2 * 0.25 / (s**2 + 0.25) for s in SIGMAS]) == pytest.approx(1)


def test_the_weights_with_the_lowest_held_out_loss_are_kept() -> None:
    rows = [_row(100, 0.5), _row(200, 0.3), _row(300, 0.4)]
    assert early_stopping.best(rows, SIGMAS, "validation_loss") == 1
    assert "image 200: the lowest denoising loss" in early_stopping.kept(rows, SIGMAS, "validation_loss")
    assert early_stopping.best(rows, SIGMAS, "last") == 2
    assert early_stopping.best([_row(100), _row(200)], SIGMAS, "validation_loss") == 1  # of equals the later


def test_the_nearest_samples_are_kept_if_distance_is_the_criterion() -> None:
    rows = [_row(100, 0.5, (3.0, 0.1)), _row(200, 0.3, (1.0, 0.1)), _row(300, 0.1, (2.0, 0.1))]
    assert early_stopping.best(rows, SIGMAS, "distance") == 1
    assert "image 200: the smallest distance" in early_stopping.kept(rows, SIGMAS, "distance")


def test_without_held_out_examples_the_last_are_kept_and_it_says_why() -> None:
    rows: list[dict[str, Any]] = [{"images": 100}, {"images": 200}]
    assert early_stopping.best(rows, SIGMAS, "validation_loss") == 1
    assert "too few held-out examples" in early_stopping.kept(rows, SIGMAS, "validation_loss")


def test_memorization_stops_after_so_many_watches_in_a_row() -> None:
    stop = Stop(memorizing=True, patience=2)
    signs = [False, True, False, True, True]
    rows = [_row(100 * i, alarming=sign) for i, sign in enumerate(signs, 1)]
    assert [early_stopping.reason(rows[:i], stop) is not None for i in range(1, 6)] == [
        False,
        False,
        False,
        False,
        True,
    ]
    assert "2 watches in a row" in str(early_stopping.reason(rows, stop))
    assert early_stopping.reason(rows, Stop(patience=2)) is None  # not asked for


def test_convergence_waits_until_nothing_falls_below_the_interval_of_the_best() -> None:
    stop = Stop(converged=True, patience=2)
    values = [4.0, 2.0, 1.0, 0.95, 0.92, 0.5, 0.45, 0.48]
    rows = [_row(100 * i, distance=(value, 0.1)) for i, value in enumerate(values, 1)]
    found = [early_stopping.reason(rows[:i], stop) is not None for i in range(1, len(rows) + 1)]
    assert found == [False, False, False, False, True, False, False, True]


def test_post_hoc_averages_are_those_that_would_have_been_tracked(tmp_path: Path) -> None:
    """Weights on a random walk; averages of widths 0.05 and 0.1 are stored, one of width 0.08 is tracked."""
    walk = torch.randn(400, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)
    kept = {width: ema.Average({"w": walk[0]}, ema.power(width)) for width in (0.05, 0.08, 0.1)}
    for step, weights in enumerate(walk, 1):
        for width, running in kept.items():
            running.update({"w": weights}, 10 * step, 10)
            if width != 0.08 and step % 20 == 0:
                name = f"power_{width:g}-{10 * step:012d}.safetensors"
                checkpoint.save(tmp_path / name, running.weights, {"average": f"power_{width:g}", "images": 10 * step})
    tracked = kept[0.08].weights["w"]
    assert np.allclose(post_hoc_ema.weights(tmp_path, 0.08)["w"], tracked, atol=0.02 * float(walk.std()))
    earlier = post_hoc_ema.weights(tmp_path, 0.08, images=2000)["w"]
    assert not np.allclose(earlier, tracked, atol=0.02 * float(walk.std()))
