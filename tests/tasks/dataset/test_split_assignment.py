"""Splits have the fractions asked for, are stable when the data grow, and work for small data."""

from __future__ import annotations

from collections import Counter

import pytest

from tasks.dataset.split_assignment import assign


def names(n: int, start: int = 0) -> list[str]:
    return [f"{i:016x}" for i in range(start, start + n)]


def test_fractions_and_seed():
    first, moved = assign(names(20_000), 0, 0.2, 0.1)
    assert moved == []
    counts = Counter(first.values())
    for split, fraction in (("train", 0.7), ("val", 0.2), ("test", 0.1)):
        assert abs(counts[split] / 20_000 - fraction) < 4 * (fraction * (1 - fraction) / 20_000) ** 0.5
    second, _ = assign(names(20_000), 1, 0.2, 0.1)
    assert sum(first[name] != second[name] for name in first) > 8000


def test_a_group_stays_where_it_is_when_the_data_grow():
    small, moved = assign(names(300), 0, 0.2, 0.1)
    large, _ = assign(names(3000), 0, 0.2, 0.1)
    assert moved == [] and all(large[name] == split for name, split in small.items())


@pytest.mark.parametrize("n", range(3, 40))
def test_three_groups_are_enough_for_three_splits(n):
    for seed in range(20):
        split, moved = assign(names(n), seed, 0.2, 0.1)
        assert set(split.values()) == {"train", "val", "test"}
        assert len(moved) <= 3


def test_what_is_moved_moves_back_when_the_hash_fills_the_split():
    """The data grow by one group at a time: a group leaves its split only while another would be empty."""
    for seed in range(20):
        previous: dict[str, str] = {}
        changes = 0
        for n in range(1, 120):
            split, moved = assign(names(n), seed, 0.2, 0.1)
            changes += sum(split[name] != previous[name] for name in previous)
            if n > 80:
                assert not moved
            previous = split
        assert changes <= 12


def test_fewer_groups_than_splits_train_first():
    for seed in range(20):
        assert set(assign(names(1), seed, 0.2, 0.1)[0].values()) == {"train"}
        pair = set(assign(names(2), seed, 0.2, 0.1)[0].values())
        assert "train" in pair and len(pair) == 2


def test_one_long_video_is_trained_on():
    for seed in range(20):
        split, _ = assign([*names(10), *["a long video"] * 30], seed, 0.2, 0.1)
        assert split["a long video"] == "train"
        assert set(split.values()) == {"train", "val", "test"}


def test_the_order_of_the_rows_does_not_matter():
    rows = [*names(7), *names(7), "x"]
    assert assign(rows, 0, 0.2, 0.1) == assign(rows[::-1], 0, 0.2, 0.1)


def test_no_validation_asked_for_is_none():
    split, moved = assign(names(5), 0, 0.0, 0.0)
    assert set(split.values()) == {"train"} and moved == []
