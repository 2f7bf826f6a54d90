"""Sets of vectors of which many may come from one source, as the clips of a video do: only sources are independent.

Where no sources are given every vector is its own, and everything here is what it is for independent vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.metrics.estimate import TooFewSamples

SourceNames = tuple[Sequence[str], Sequence[str]]  # the name of the source of each vector, for both sets

NEEDED = 20  # sources a side below which the spread between them, and so an interval, means nothing


class Sources(NamedTuple):
    """`of` int64 `[n]`: the number, from 0 to `number` - 1, of the source that each vector is from."""

    of: np.ndarray
    number: int

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum within each source of values `[n]`: float64 `[number]`."""
        return np.bincount(self.of, values, self.number)

    def variance_of_mean(self, values: np.ndarray) -> float:
        """Of the mean of values `[n]` that depend on each other within a source in whatever way.

        The variance of the sums within sources (Liang & Zeger 1986); for independent values, their variance over n.
        """
        sums = self.sums(values - values.mean())
        return float(sums @ sums) * self.number / (self.number - 1) / len(values) ** 2

    def worth(self, x: np.ndarray) -> int:
        """How many independent vectors give a mean as precise as these `[n, d]` do: at most n, at least about `number`."""
        deviation = x - x.mean(axis=0)
        together = np.zeros((self.number, x.shape[1]))
        np.add.at(together, self.of, deviation)
        spread, of_sums = np.square(deviation).sum(), np.square(together).sum()
        return len(x) if of_sums <= spread else round(len(x) * spread / of_sums)

    def halves(self, x: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """The vectors of a random half of the sources, and those of the others."""
        chosen = np.zeros(self.number, bool)
        chosen[rng.permutation(self.number)[: (self.number + 1) // 2]] = True
        return [x[chosen[self.of]], x[~chosen[self.of]]]


def sources_of(names: Sequence[str] | None, n: int, what: str) -> Sources:
    """The sources of n vectors by the name of each; without names every vector is its own.

    Raises TooFewSamples if names are given and there are fewer than NEEDED sources, ValueError unless there are n names.
    """
    if names is None:
        return Sources(np.arange(n), n)
    if len(names) != n:
        raise ValueError(f"{len(names)} sources were given for {n} vectors")
    found, of = np.unique(np.asarray(names), return_inverse=True)
    if len(found) < NEEDED:
        raise TooFewSamples(what, len(found), NEEDED, "sources")
    return Sources(of, len(found))
