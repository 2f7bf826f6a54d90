"""Counter-based random numbers and the order of the training data."""

import math
from itertools import permutations

import pytest
import torch

from diffusion_core import rng
from diffusion_core.training import data_order


def test_rows_do_not_depend_on_the_batch():
    ids = torch.arange(37)
    whole = rng.normal((5, 3), 7, ids)
    shuffled = torch.tensor([20, 3, 36])
    assert torch.equal(rng.normal((5, 3), 7, shuffled), whole[shuffled])
    assert not torch.equal(rng.normal((5, 3), 8, ids), whole)


def test_known_answer():
    # The published test vector of SplitMix64 (state 1234567), then fixed values of our own stream.
    state = torch.arange(1, 4) * rng._GOLDEN + 1234567
    assert [v % 2**64 for v in rng._mix(state).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert rng.fold(0) == rng.fold((0,))
    assert rng.fold(3, 1) != rng.fold(1, 3)
    assert rng.bits(0, torch.tensor([0, 1]), 2).tolist() == KNOWN


KNOWN = [[1343634575824847588, 4481214838533717084], [-2956644177542432818, 9106876106322948560]]


def test_moments_and_independence():
    z = rng.normal((64,), 1, torch.arange(4096)).double()
    count = z.numel()
    assert abs(float(z.mean())) < 4 / math.sqrt(count)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / count)
    correlation = torch.corrcoef(z.T) - torch.eye(64)
    assert float(correlation.abs().max()) < 5.5 / math.sqrt(4096)
    neighbours = (z[1:] * z[:-1]).mean()  # ids next to each other
    assert abs(float(neighbours)) < 4 / math.sqrt(count)


def test_uniform_is_uniform():
    u = rng.uniform((256,), 3, torch.arange(256)).flatten()
    assert 0 < float(u.min()) and float(u.max()) < 1
    counts = torch.histc(u, 100, 0, 1)
    expected = len(u) / 100
    chi = float(((counts - expected) ** 2 / expected).sum())
    assert 55 < chi < 155  # chi-squared with 99 degrees of freedom, beyond 3.5 standard deviations on either side


@pytest.fixture(params=["in memory", "place by place"])
def order(request, monkeypatch):
    """Both ways to compute the order of the examples."""
    if request.param == "place by place":
        monkeypatch.setattr(data_order, "LARGE", 0)


@pytest.mark.parametrize("n", [1, 2, 13, 64, 65])
def test_every_pass_is_another_permutation(n, order):
    whole = data_order.indices(5, 0, 4 * n, n)
    for epoch in whole.split(n):
        assert sorted(epoch.tolist()) == list(range(n))
    assert n < 13 or not torch.equal(whole[:n], whole[n : 2 * n])
    assert whole.tolist() == [data_order.index(5, i, n) for i in range(4 * n)]


def test_every_order_is_about_as_likely(order):
    orders = [tuple(data_order.indices(seed, 0, 4, 4).tolist()) for seed in range(480)]
    counts = torch.tensor([orders.count(each) for each in permutations(range(4))], dtype=torch.float64)
    chi = float(((counts - 20) ** 2 / 20).sum())
    assert 6 < chi < 54  # chi-squared with 23 degrees of freedom, its 0.02 % and 99.97 % quantiles


def test_the_order_of_a_hundred_million_needs_no_memory():
    n = 100_000_000
    shown = data_order.indices(3, n - 500, 1000, n)
    assert len(set(shown[:500].tolist())) == len(set(shown[500:].tolist())) == 500
    assert 0 <= int(shown.min()) and int(shown.max()) < n
    assert abs(float(shown.double().mean()) / n - 0.5) < 4 * 12**-0.5 / 1000**0.5  # the mean of 1000 uniform numbers


def test_order_does_not_depend_on_ranks_or_restarts(order):
    n, batch = 10, 12  # a batch longer than the data is allowed
    whole = data_order.indices(1, 0, 5 * batch, n)
    for world in (1, 2, 4):
        share = batch // world
        parts = [
            data_order.indices(1, start + rank * share, share, n)
            for start in range(0, 5 * batch, batch)
            for rank in range(world)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(data_order.indices(1, 29, 31, n), whole[29:])


def test_gamma_noise_is_centred_scaled_and_skewed():
    """Shape k: mean 0, variance 1, skewness 2 / sqrt(k)."""
    for k in (1, 9):
        z = rng.gamma(k)((64,), 3, torch.arange(8192)).double()
        assert abs(float(z.mean())) < 0.005 and abs(float(z.var()) - 1) < 0.02
        assert abs(float((z**3).mean()) - 2 / math.sqrt(k)) < 0.1
        assert float(z.min()) >= -math.sqrt(k)


def test_shared_noise_is_normal_in_each_frame_and_correlated_between_frames():
    ids = torch.arange(4000)
    draws = rng.shared(rng.normal, 0.8)((3, 2, 2), 5, ids)
    assert torch.equal(draws[[7, 3]], rng.shared(rng.normal, 0.8)((3, 2, 2), 5, torch.tensor([7, 3])))
    frames = draws.movedim(1, 0).flatten(1)
    torch.testing.assert_close(torch.corrcoef(frames), 0.2 * torch.eye(3) + 0.8, atol=0.02, rtol=0)
    torch.testing.assert_close(frames.std(1), torch.ones(3), atol=0.02, rtol=0)
    within = torch.corrcoef(draws[:, 0].flatten(1).T)  # places of one frame are independent
    torch.testing.assert_close(within, torch.eye(4), atol=0.05, rtol=0)
