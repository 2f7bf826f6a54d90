"""Tiles: the same as the whole picture for a network that looks near, and no seam for one that looks far."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.tiling import starts, tiled

LEVEL = sigma_level(torch.tensor(0.5, dtype=torch.float64))


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return rng.normal((3, height, width), seed, torch.arange(2)).double()


def blurring(radius: int) -> Denoiser:
    """Means over squares of pixels up to `radius` away, of x and of a map; what lies outside of the picture is zero."""

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        both = x + cond["map:low"] * cond["vec:size"][:, :, None, None]
        kernel = torch.full((3, 1, 2 * radius + 1, 2 * radius + 1), (2 * radius + 1) ** -2.0, dtype=x.dtype)
        return conv2d(pad(both, [radius] * 4), kernel, groups=3)

    return denoise


def conditions(x: Tensor) -> Cond:
    return {"map:low": picture(*x.shape[-2:], seed=1), "vec:size": torch.ones(len(x), 1, dtype=x.dtype)}


@pytest.mark.parametrize(("height", "width"), [(40, 40), (16, 40), (23, 57)])
def test_a_network_that_looks_no_further_than_a_quarter_of_the_overlap_gives_the_same(height: int, width: int) -> None:
    x = picture(height, width)
    whole = blurring(2)(x, LEVEL, conditions(x))
    torch.testing.assert_close(tiled(blurring(2), 16, 8)(x, LEVEL, conditions(x)), whole)
    assert not torch.allclose(tiled(blurring(3), 16, 8)(x, LEVEL, conditions(x)), blurring(3)(x, LEVEL, conditions(x)))


def test_estimates_that_differ_between_tiles_leave_no_seam_where_tiles_overlap() -> None:
    """Every tile gets its own brightness, the worst that a network could do."""
    seen: list[int] = []

    def moody(x: Tensor, level: Level, cond: Cond) -> Tensor:
        seen.append(len(seen))
        return torch.full_like(x, float(seen[-1] % 2))

    def steepest(overlap: int) -> float:
        seen.clear()
        flat = tiled(moody, 32, overlap)(picture(32, 128), LEVEL, {})
        return float(flat.diff(dim=-1).abs().max())

    assert steepest(0) == 1
    assert steepest(16) <= 1 / 8 + 1e-9  # the whole step over half an overlap


def test_one_tile_is_evaluated_at_a_time_and_all_pixels_are_covered() -> None:
    shapes = set()

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        shapes.add(tuple(x.shape[-2:]))
        return torch.ones_like(x)

    assert torch.equal(tiled(denoise, 16, 4)(picture(33, 50), LEVEL, {}), torch.ones(2, 3, 33, 50, dtype=torch.float64))
    assert shapes == {(16, 16)}
    assert starts(128, 64, 16) == [0, 48, 64] and starts(64, 64, 16) == [0]


def test_impossible_overlaps_are_refused() -> None:
    for overlap in (-1, 9):
        with pytest.raises(ValueError, match="overlap must be between 0 and half a tile"):
            tiled(blurring(1), 16, overlap)
