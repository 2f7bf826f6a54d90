"""Subsets of a dataset that represent all of it."""

from __future__ import annotations


def evenly_spaced(n: int, count: int) -> list[int]:
    """At most `count` of the indices 0 ... n - 1, evenly spaced.

    Datasets are sorted by category, so their first rows would show one category only.
    """
    count = min(n, count)
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]
