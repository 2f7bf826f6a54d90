"""Reducing pictures: the exact mean of the area that a pixel covers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tasks.common.images import area_average


@pytest.mark.parametrize(("side", "size"), [(6, 3), (6, 4), (7, 5), (5, 1), (4, 4)])
def test_a_pixel_is_the_mean_of_the_area_that_it_covers(side: int, size: int) -> None:
    picture = np.random.default_rng(side * size).integers(0, 256, (side, side, 3), np.uint8)
    reduced = area_average(picture, size)
    scale = Fraction(side, size)

    def share(new: int, old: int) -> Fraction:
        return max(Fraction(0), min(Fraction(old + 1), (new + 1) * scale) - max(Fraction(old), new * scale))

    for y in range(size):
        for x in range(size):
            for channel in range(3):
                total = sum(
                    share(y, i) * share(x, j) * int(picture[i, j, channel]) for i in range(side) for j in range(side)
                )
                mean = total / scale**2
                assert reduced[y, x, channel] == int(mean + Fraction(1, 2))
