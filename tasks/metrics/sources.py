"""Sets of vectors of which many may come from one source, such as the clips of one video. Only sources are independent.

Without sources every vector is its own source, and every formula reduces to that for independent vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tasks.metrics.estimate import TooFewSamples

SourceNames = tuple[Sequence[str], Sequence[str]]  # the name of the source of each vector, for both sets

NEEDED = 20  # sources a side below which the spread between them says too little for an interval


class Sources(NamedTuple):
    """`of` int64 `[n]`: the number, from 0 to `number` - 1, of the source that each vector is from."""

    of: np.ndarray
    number: int

    def sums(self, values: np.ndarray) -> np.ndarray:
        """The sum within each source of values `[n]`: float64 `[number]`."""
        return np.bincount(self.of, values, self.number)

    def variance_of_mean(self, values: np.ndarray) -> float:
        """Variance of the mean of values `[n]` with any dependence within a source (Liang & Zeger 1986).

        For independent values it is their variance over n.
        """
        sums = self.sums(values - values.mean())
        return float(sums @ sums) * self.number / (self.number - 1) / len(values) ** 2

    def effective_size(self, x: np.ndarray) -> int:
        """How many independent vectors have a mean as precise as that of `x` `[n, d]`: at most n, at least about `number`."""
        deviation = x - x.mean(axis=0)
        sums = np.zeros((self.number, x.shape[1]))
        np.add.at(sums, self.of, deviation)
        spread, spread_of_sums = np.square(deviation).sum(), np.square(sums).sum()
        return len(x) if spread_of_sums <= spread else round(len(x) * spread / spread_of_sums)

    def halves(self, x: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """The vectors of a random half of the sources, and the vectors of the other half."""
        chosen = np.zeros(self.number, bool)
        chosen[rng.permutation(self.number)[: (self.number + 1) // 2]] = True
        return [x[chosen[self.of]], x[~chosen[self.of]]]


def sources_of(names: Sequence[str] | None, n: int, what: str) -> Sources:
    """The sources of n vectors from the source name of each; without names every vector is its own source.

    Raises TooFewSamples if names are given and there are fewer than NEEDED sources, ValueError unless there are n names.
    """
    if names is None:
        return Sources(np.arange(n), n)
    if len(names) != n:
        raise ValueError(f"{len(names)} sources were given for {n} vectors")
    distinct, of = np.unique(np.asarray(names), return_inverse=True)
    if len(distinct) < NEEDED:
        raise TooFewSamples(what, len(distinct), NEEDED, "sources")
    return Sources(of, len(distinct))
