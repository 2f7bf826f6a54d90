"""Thumbnails keep a picture's proportions and lie in the middle of their square."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.common.thumbnail import SIDE, content, thumbnail


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (333, 500), (32, 32), (4000, 37), (20, 31), (1, 1)])
def test_only_the_content_is_filled_and_it_is_centred(size: tuple[int, int]) -> None:
    width, height = content(*size)
    small = thumbnail(np.full((size[1], size[0], 3), 200, np.uint8))
    rows, columns = np.flatnonzero(small.any(axis=1)), np.flatnonzero(small.any(axis=0))
    assert (columns[0], columns[-1] + 1) == ((SIDE - width) // 2, (SIDE + width) // 2)
    assert (rows[0], rows[-1] + 1) == ((SIDE - height) // 2, (SIDE + height) // 2)
    assert SIDE - 2 < max(width, height) <= SIDE
    assert (small[rows[0], columns] == 200).all()


def test_nothing_is_stretched() -> None:
    # A disc of a third of the height in the middle of a wide picture.
    y, x = np.mgrid[:300, :505]
    disc = ((x - 252) ** 2 + (y - 149.5) ** 2 < 50**2).astype(np.uint8) * 255
    small = thumbnail(disc).astype(np.float64)
    row, column = small.sum(axis=1), small.sum(axis=0)
    at = np.arange(SIDE)
    spread = [np.sqrt(np.average((at - np.average(at, weights=z)) ** 2, weights=z)) for z in (row, column)]
    assert spread[0] == pytest.approx(spread[1], rel=0.01)
    assert spread[0] == pytest.approx(50 / 2 * SIDE / 505, rel=0.05)
