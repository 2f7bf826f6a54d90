"""Blocks of a stage that takes as many as it turns out to need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.common import blocks, files

COUNT = 20


def _stage(asked: list[int], enough: int) -> list[int]:
    """A stage that takes blocks until it has `enough`, and expects to need three more at first, then what is missing."""
    taken: list[int] = []

    def block(number: int) -> blocks.Block:
        return lambda: asked.append(number) or {"x": np.array(number)}

    def needed() -> int:
        return enough - len(taken) if taken else 3

    for arrays in blocks.computed([block(number) for number in range(COUNT)], "test", needed):
        taken.append(int(arrays["x"]))
        if len(taken) == enough:
            break
    return taken


def _slices(folder: Path, enough: int, *window: int) -> list[int]:
    asked: list[int] = []
    for rank in range(2):
        with pytest.raises(blocks.ShareDone) as done, blocks.slice_of(rank, 2, folder, *window):
            _stage(asked, enough)
        assert done.value.total == COUNT
    return sorted(asked)


def test_a_stage_computes_no_more_than_it_takes() -> None:
    asked: list[int] = []
    assert _stage(asked, 7) == asked == list(range(7))


def test_slices_compute_what_is_needed_and_the_stage_says_what_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _slices(tmp_path, 7) == [0, 1, 2]
    monkeypatch.setenv(blocks.BLOCKS, str(tmp_path))
    with pytest.raises(blocks.MoreBlocks):
        _stage([], 7)
    assert files.read_json(tmp_path / blocks.WANTED) == [3, 7]
    assert _slices(tmp_path, 7, 3, 7) == [3, 4, 5, 6]
    asked: list[int] = []
    assert _stage(asked, 7) == list(range(7)) and not asked


def test_no_blocks_are_wanted_beyond_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _slices(tmp_path, COUNT, COUNT - 2, COUNT + 5) == [COUNT - 2, COUNT - 1]
    _slices(tmp_path, COUNT, 0, COUNT - 3)
    monkeypatch.setenv(blocks.BLOCKS, str(tmp_path))
    with pytest.raises(blocks.MoreBlocks):
        _stage([], COUNT + 30)
    assert files.read_json(tmp_path / blocks.WANTED) == [COUNT - 3, COUNT]
