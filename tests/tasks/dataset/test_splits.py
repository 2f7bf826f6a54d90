from pathlib import Path

import numpy as np
import pytest

from tasks.dataset.splits import load_splits
from tests.support.workspaces import write_shards


@pytest.mark.parametrize("count", [None, 0, 3, 20, 24, 99])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_blocks_of_any_size_are_the_pictures_in_order(tmp_path: Path, count: int | None, rows: int) -> None:
    write_shards(tmp_path, 3, 20, 10)
    _, heldout = load_splits(tmp_path)  # two splits of 20 and 10
    blocks = list(heldout.picture_blocks(16, count, rows))
    assert all(0 < len(block) <= rows for block in blocks)
    expected = heldout.pictures_uint8(16)[:count]
    assert sum(len(block) for block in blocks) == len(expected)
    if len(expected):
        np.testing.assert_array_equal(np.concatenate(blocks), expected)
