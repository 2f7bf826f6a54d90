"""Batch and learning rate as functions of images seen."""

from itertools import pairwise

import pytest

from diffusion_core.training.lr_schedule import TrainConfig, learning_rate, steps

GROWING = TrainConfig(images=1000, batch=10, learning_rate=1.0, batch_growth=((100, 20), (300, 40)))


def test_the_batch_grows_where_it_is_told_and_every_image_is_seen_once() -> None:
    walked = list(steps(GROWING))
    assert [nimg for nimg, _ in walked] == [0, *(sum(b for _, b in walked[: i + 1]) for i in range(len(walked) - 1))]
    assert {batch: nimg for nimg, batch in reversed(walked)} == {10: 0, 20: 100, 40: 300}
    assert sum(batch for _, batch in walked) >= 1000 > walked[-1][0]
    assert list(steps(GROWING, 300)) == [step for step in walked if step[0] >= 300]


@pytest.mark.parametrize(("power", "factor"), [(0.0, 1), (0.5, 2), (1.0, 4)])
def test_the_learning_rate_follows_the_batch_by_the_stated_rule(power: float, factor: float) -> None:
    config = TrainConfig(images=1000, batch=10, learning_rate=1.0, batch_growth=((300, 40),), batch_lr_power=power)
    assert learning_rate(config, 0) == 1 and learning_rate(config, 299) == 1
    assert learning_rate(config, 300) == pytest.approx(factor)


def test_decay_is_the_inverse_square_root_from_where_it_begins() -> None:
    config = TrainConfig(images=10**6, batch=10, learning_rate=1.0, decay_from_images=1000)
    assert learning_rate(config, 980) == 1
    assert learning_rate(config, 3990) == pytest.approx(0.5)
    assert learning_rate(config, 99_990) == pytest.approx(0.1)


def test_cooldown_falls_evenly_and_its_last_step_still_counts() -> None:
    config = TrainConfig(images=1000, batch=10, learning_rate=1.0, cooldown_images=200)
    rates = [learning_rate(config, nimg) for nimg, _ in steps(config)]
    assert rates[:80] == [1.0] * 80
    falls = [a - b for a, b in pairwise(rates[80:])]
    assert falls == pytest.approx([0.05] * 19)
    assert rates[-1] == pytest.approx(0.025)
    assert sum(rates[80:]) == pytest.approx(10)  # the area of the triangle, in steps
