"""Structural similarity: its fixed points, and a value computed by hand."""

import pytest
import torch

from tasks.metrics.ssim import ssim


def test_ssim_is_one_for_equal_pictures_and_less_with_noise() -> None:
    x = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1])
    noisy = [ssim(x, x + sd * torch.randn(x.shape)).mean() for sd in (0.05, 0.2)]
    assert 1 > noisy[0] > noisy[1] > 0


def test_ssim_of_flat_pictures_depends_on_their_brightness_only() -> None:
    x, y = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(x, y).item() == pytest.approx(expected, rel=1e-4)
