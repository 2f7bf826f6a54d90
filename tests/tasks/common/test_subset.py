"""Evenly spaced indices."""

import pytest

from tasks.common.subset import evenly_spaced


@pytest.mark.parametrize(("n", "count"), [(0, 5), (1, 5), (5, 5), (7, 3), (1000, 128)])
def test_distinct_in_range_and_every_tenth_is_represented(n: int, count: int) -> None:
    chosen = evenly_spaced(n, count)
    assert len(set(chosen)) == len(chosen) == min(n, count)
    assert all(0 <= i < n for i in chosen) and chosen == sorted(chosen)
    if count >= 20:
        share = [sum(n * k // 10 <= i < n * (k + 1) // 10 for i in chosen) for k in range(10)]
        assert max(share) - min(share) <= 1
