"""The measures of `benchmarks.digits`, on planted copies and leaks."""

import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks import digits
from diffusion_core import rng
from diffusion_core.training import augmentation

PICTURES = digits.digits()


def test_digits_are_complete_and_in_a_fixed_order():
    assert PICTURES.shape == (1797, 64) and float(PICTURES.min()) == -1 and float(PICTURES.max()) == 1
    assert torch.equal(PICTURES, digits.digits())
    assert len(PICTURES.unique(dim=0)) == 1797


def test_copies_are_detected_and_held_out_digits_are_not():
    train, held = PICTURES[:200], PICTURES[-digits.HELD :]
    assert digits.copied(train, train) == 1
    assert digits.copied(held, train) == 0
    planted = torch.cat([held[:90], train[:10]])
    assert digits.copied(planted, train) == pytest.approx(0.1)


def test_detection_falls_with_noise_and_with_more_examples():
    """The detector misses noisier copies, and misses more of them in a larger training set."""
    found = {}
    for n in (50, 1400):
        copies = PICTURES[:n].repeat(8, 1)[:400]
        noise = rng.normal((64,), 0, torch.arange(400))
        found[n] = [digits.copied(copies + s * noise, PICTURES[:n]) for s in (0.05, 0.1, 0.2)]
    for shares in found.values():
        assert shares[0] > 0.95 and shares[0] > shares[1] > shares[2] and shares[2] < 0.25
    assert found[1400][1] < found[50][1]


def test_controls_are_one_and_zero():
    assert digits.controls(50) == (1.0, 0.0)


def test_onset_is_interpolated_between_two_checks():
    looks = [digits.Look(100, 0.0, [1.0]), digits.Look(200, 0.05, [2.0]), digits.Look(300, 0.25, [4.0])]
    assert digits.crossing(looks, lambda look: look.memorized, 0.1) == pytest.approx(225)
    assert digits.crossing(looks, lambda look: look.gap[0], 1.5) == pytest.approx(150)
    assert digits.crossing(looks, lambda look: look.memorized, 0.5) == float("inf")


def test_shifts_leak_ink_to_the_edges_and_set_the_condition():
    x0 = PICTURES[:600]
    moved, cond = digits.shifts(x0, {}, 3, torch.arange(600))
    told = cond["vec:augment"]
    still = (told == 0).all(1)
    assert torch.equal(moved[still], x0[still])
    assert 0.4 < float(still.float().mean()) < 0.7  # half, and a ninth of the other half stays where it is
    assert digits.edge_ink(moved)[0] > 3 * digits.edge_ink(x0)[0]
    right = (told[:, 4] > 0) & (told[:, 5] == 0)
    torch.testing.assert_close(moved[right].reshape(-1, 8, 8)[:, :, 1:], x0[right].reshape(-1, 8, 8)[:, :, :-1])
    assert told.shape == (600, augmentation.WIDTH)
    same, nothing = digits.untold(x0, {}, 3, torch.arange(600))
    assert torch.equal(same, moved) and nothing == {}
