"""Batch and learning rate as functions of images seen."""

from itertools import pairwise

import pytest

from diffusion_core.training.lr_schedule import TrainConfig, learning_rate, steps

GROWING = TrainConfig(images=1000, batch=10, learning_rate=1.0, batch_growth=((100, 20), (300, 40)))


def test_the_batch_grows_at_the_given_images_and_every_image_is_seen_once() -> None:
    taken = list(steps(GROWING))
    assert [nimg for nimg, _ in taken] == [0, *(sum(b for _, b in taken[: i + 1]) for i in range(len(taken) - 1))]
    assert {batch: nimg for nimg, batch in reversed(taken)} == {10: 0, 20: 100, 40: 300}
    assert sum(batch for _, batch in taken) >= 1000 > taken[-1][0]
    assert list(steps(GROWING, 300)) == [step for step in taken if step[0] >= 300]


@pytest.mark.parametrize(("power", "factor"), [(0.0, 1), (0.5, 2), (1.0, 4)])
def test_the_learning_rate_scales_with_a_power_of_the_batch(power: float, factor: float) -> None:
    config = TrainConfig(images=1000, batch=10, learning_rate=1.0, batch_growth=((300, 40),), batch_lr_power=power)
    assert learning_rate(config, 0) == 1 and learning_rate(config, 299) == 1
    assert learning_rate(config, 300) == pytest.approx(factor)


def test_decay_is_inverse_square_root_from_its_start() -> None:
    config = TrainConfig(images=10**6, batch=10, learning_rate=1.0, decay_from_images=1000)
    assert learning_rate(config, 980) == 1
    assert learning_rate(config, 3990) == pytest.approx(0.5)
    assert learning_rate(config, 99_990) == pytest.approx(0.1)


def test_cooldown_is_linear_and_its_last_rate_is_positive() -> None:
    config = TrainConfig(images=1000, batch=10, learning_rate=1.0, cooldown_images=200)
    rates = [learning_rate(config, nimg) for nimg, _ in steps(config)]
    assert rates[:80] == [1.0] * 80
    falls = [a - b for a, b in pairwise(rates[80:])]
    assert falls == pytest.approx([0.05] * 19)
    assert rates[-1] == pytest.approx(0.025)
    assert sum(rates[80:]) == pytest.approx(10)  # the area of the triangle, in steps
