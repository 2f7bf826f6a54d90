"""Copy scores in blocks: the scores of one machine, whoever computed which."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.common import blocks
from tasks.evaluate.memorization.copy_score import ITEMS, ViewScorer
from tasks.evaluate.memorization.invariances import POSE_BANKS
from tasks.evaluate.memorization.score_blocks import Search, prepared
from tasks.evaluate.memorization.scorers import score, scorer
from tests.support.evaluation_workspace import poses


def _searches() -> list[Search]:
    train, groups = poses(40, 1), np.arange(40) // 2
    alone = Search(POSE_BANKS[0], train, np.zeros(40, np.int64), poses(3, 3))  # too few groups: there is no score
    return [
        Search(POSE_BANKS[0], train, groups, poses(ITEMS + 20, 2)),
        Search(POSE_BANKS[1], train, groups, train, groups),
        alone,
    ]


def test_prepared_scores_are_those_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big, own, _ = _searches()
    expected = [score(some.bank, some.items, some.train, some.groups, some.own) for some in (big, own)]
    for rank in (1, 0, 2):
        with pytest.raises(blocks.ShareDone) as done, blocks.slice_of(rank, 3, tmp_path), prepared(_searches, scorer):
            raise AssertionError("a slice does no more than its blocks")
        assert done.value.total == 4
    monkeypatch.setenv(blocks.BLOCKS, str(tmp_path))
    with prepared(_searches, scorer):
        with monkeypatch.context() as patched:
            patched.setattr(ViewScorer, "score", None)
            found = [score(some.bank, some.items, some.train, some.groups, some.own) for some in (big, own)]
        fewer = score(big.bank, big.items[:5], big.train, big.groups)
    for scores, wanted in zip(found, expected, strict=True):
        assert all(np.array_equal(*pair) for pair in zip(scores, wanted, strict=True))
    assert np.array_equal(fewer.first, expected[0].first[:5])


def test_a_block_that_is_missing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def block(number: int) -> blocks.Block:
        return lambda: asked.append(number) or {"x": np.array(number)}

    with pytest.raises(blocks.ShareDone), blocks.slice_of(1, 2, tmp_path):
        blocks.computed([block(number) for number in range(5)], "test")
    assert asked == [1, 3]
    monkeypatch.setenv(blocks.BLOCKS, str(tmp_path))
    assert [int(some["x"]) for some in blocks.computed([block(number) for number in range(5)], "test")] == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert asked == [1, 3, 0, 2, 4]
