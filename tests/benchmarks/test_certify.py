"""Cases that `certify` has to catch from pictures alone."""

import pytest

from benchmarks import certify


@pytest.mark.slow
def test_a_model_that_was_trained_until_it_copies_is_caught() -> None:
    found = certify.trained(steps=500)
    assert found["late_is_copies"] == 1 and found["late_listed"] > 75  # of 150
    assert found["early_is_copies"] == 0 and found["early_listed"] == 0


@pytest.mark.slow
def test_training_pictures_with_another_background_are_caught() -> None:
    found = certify.backgrounds()
    assert found["caught"] == 1 and found["on_the_list"] >= 5 and found["false"] <= 1
