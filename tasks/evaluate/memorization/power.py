"""The power of the copy test, measured with planted copies, and what follows from it for the share of copies.

A sample is recognised as a copy if it alone would make the verdict COPIES. `Power` is the share of planted copies that are
recognised by this rule. Of n samples of which a share s are copies, the number x that is recognised is at least binomial with
probability s * power. So an upper bound of the recognised share, divided by a lower bound of the power, bounds s. Both bounds
are exact (Clopper & Pearson 1934), one-sided, and fail with half of the allowed probability each.

The bound holds for copies that are disguised as the planted ones are, of originals drawn from the whole training set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

CONFIDENCE = 0.95
NEEDED = 0.8  # share of planted copies that must be recognised before "no copies" is said


def lower(successes: int, trials: int, failure: float) -> float:
    """The one-sided lower bound of a probability; it is too large with probability `failure` at most. 0 without trials."""
    return float(beta.ppf(failure, successes, trials - successes + 1)) if successes else 0.0


def upper(successes: int, trials: int, failure: float) -> float:
    """The one-sided upper bound of a probability; it is too small with probability `failure` at most. 1 without trials."""
    return float(beta.ppf(1 - failure, successes + 1, trials - successes)) if successes < trials else 1.0


@dataclass(frozen=True)
class Power:
    """How many planted copies were recognised."""

    found: int
    planted: int

    @property
    def share(self) -> float:
        """The share of planted copies that were recognised; 0 if none were planted."""
        return self.found / self.planted if self.planted else 0.0

    def interval(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """The exact two-sided interval of the probability that a copy is recognised (Clopper & Pearson 1934)."""
        failure = (1 - confidence) / 2
        return lower(self.found, self.planted, failure), upper(self.found, self.planted, failure)


def of(found: np.ndarray) -> Power:
    """The power from one truth value for each planted copy."""
    return Power(int(found.sum()), len(found))


def by_disguise(disguises: Sequence[str], found: np.ndarray) -> dict[str, Power]:
    """The power for each disguise, in the order in which disguises first occur."""
    names = np.array(disguises)
    return {name: of(found[names == name]) for name in _unique(disguises)}


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def share_bound(recognised: int, samples: int, power: Power, confidence: float = CONFIDENCE) -> float:
    """The largest share of copies among all samples that agrees with the number recognised, at this confidence.

    1 if nothing can be said.
    """
    failure = (1 - confidence) / 2
    least = lower(power.found, power.planted, failure)
    most = upper(recognised, samples, failure)
    return min(1.0, most / least) if least else 1.0
