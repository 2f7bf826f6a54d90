"""A few of many, chosen the same way everywhere."""

from __future__ import annotations


def evenly(n: int, count: int) -> list[int]:
    """At most `count` of 0 ... n - 1, evenly spaced. The first of a dataset will not do: it is sorted by category."""
    count = min(n, count)
    return [(2 * i + 1) * n // (2 * count) for i in range(count)]
