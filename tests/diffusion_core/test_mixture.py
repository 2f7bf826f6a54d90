"""The distances of `benchmarks.mixture`, where their values are known."""

import pytest
import torch

from benchmarks import mixture


def test_quantiles_are_those_of_many_draws():
    draws = mixture.draw(3, torch.arange(200_000)).double()
    projected = (draws @ mixture.directions(2).T).sort(0).values[100::200]
    law = mixture.quantiles(1000)
    assert float((projected - law)[20:-20].abs().mean()) < 0.01
    assert (law.diff(dim=0) >= 0).all()


def test_distance_is_small_for_data_and_measures_a_shift():
    law = mixture.quantiles(20_000)
    data = mixture.draw(4, torch.arange(20_000))
    exact = mixture.w2_to_law(data, law)
    assert exact < 0.03
    # A shift by t moves every projection on u by t . u: the root mean square over directions is |t| / sqrt(2).
    moved = mixture.w2_to_law(data + torch.tensor([0.6, 0.8]), law)
    assert moved == pytest.approx(2**-0.5, rel=0.1)
    assert mixture.sliced_w2(data, data.flip(0)) == 0
