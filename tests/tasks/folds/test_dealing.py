"""Dealing examples into folds."""

import numpy as np
import pytest

from tasks.common.errors import DataError
from tasks.folds.dealing import deal


def test_a_group_is_in_one_fold_and_folds_are_about_equal() -> None:
    groups = [f"video {i % 7}" for i in range(70)] + [f"photo {i}" for i in range(50)]
    fold = deal(groups, 3, seed=0)
    for name in set(groups):
        assert len({int(k) for k, group in zip(fold, groups, strict=True) if group == name}) == 1
    assert np.bincount(fold).tolist() == [40, 40, 40]


def test_the_deal_depends_on_the_seed_and_not_on_the_order() -> None:
    groups = [f"photo {i}" for i in range(60)]
    fold = deal(groups, 3, seed=0)
    assert (deal(groups[::-1], 3, seed=0)[::-1] == fold).all()
    assert (deal(groups, 3, seed=1) != fold).any()


def test_too_few_examples_for_the_folds_are_refused() -> None:
    with pytest.raises(DataError):
        deal([str(i) for i in range(20)], 3, seed=0)
    with pytest.raises(DataError):
        deal(["one video"] * 100 + [str(i) for i in range(20)], 4, seed=0)
