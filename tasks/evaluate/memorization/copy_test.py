"""The copy test: are generated samples nearer to training items than held-out items ever are?

`Tail` turns copy scores (tasks/evaluate/memorization/copy_score.py) into p-values, `benjamini_hochberg` into a list of copies,
`split_exchangeability` asks the same question without any model of the scores, and `judge` gives the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.stats import beta, hypergeom

from tasks.metrics.neighbours import search

TAIL_SHARES = (0.2, 0.1, 0.05)  # of the null scores, tried in turn until the power law fits
CLOSE = 0.5  # a ratio below makes a sample a candidate of the split test
NEAR, MIDDLE, FAR = 1, 11, 41  # neighbour ranks between which the leak detector compares dimensions
LEAK = 0.9  # dimension ratio below which held-out items have near-duplicates in train


@dataclass(frozen=True)
class Tail:
    """The lower tail of the null ratios: below `start` the ratio follows a power law, P(r <= t) ~ t^dimension.

    `count` of the `size` null ratios lie below `start`, and `log_sum` is their sum of log(start / r). `fits`: whether
    the exponential law of these logarithms passes its goodness-of-fit test; if no tail does, p-values are conformal.
    """

    null: np.ndarray  # sorted
    start: float
    count: int
    log_sum: float
    misfit: float  # Stephens' modified Kolmogorov-Smirnov statistic; above 1.308 the law is rejected at 1%

    @property
    def size(self) -> int:
        """Number of null scores."""
        return len(self.null)

    @property
    def fits(self) -> bool:
        """Whether the power law is not rejected at 1% (Stephens 1974, table 1.4: exponential, mean unknown)."""
        return self.misfit <= 1.308

    @property
    def dimension(self) -> float:
        """The exponent of the tail (Hill 1975): the intrinsic dimension that the copies hide in."""
        return self.count / self.log_sum

    def p_values(self, ratio: np.ndarray) -> np.ndarray:
        """P(a null ratio is as small) for each ratio, valid at the stated level in finite samples: float64 `[n]`.

        With x = log(start / r) exponential above the (count+1)-th order statistic, x / log_sum has the survival
        function (1 + x / log_sum)^-count: the uncertainty of the fitted exponent is in the p-value. Without a fit,
        the conformal (1 + #{null <= r}) / (size + 1) (Bates et al. 2023, eq. 2).
        """
        rank = np.searchsorted(self.null, ratio, side="right")
        conformal = (1 + rank) / (self.size + 1)
        if not self.fits:
            return conformal
        excess = np.log(self.start / np.minimum(ratio, self.start))
        fitted = (self.count + 1) / (self.size + 1) * (1 + excess / self.log_sum) ** -float(self.count)
        return np.where(ratio < self.start, fitted, conformal)

    def ratio_at(self, p: float) -> float:
        """The ratio whose p-value is `p`: the largest that a sample may have to be found at that level."""
        share = (self.count + 1) / (self.size + 1)
        if not self.fits or p >= share:
            return float(np.quantile(self.null, p)) if p * (self.size + 1) >= 1 else 0.0
        return float(self.start * np.exp(-self.log_sum * ((share / p) ** (1 / self.count) - 1)))


def _misfit(logs: np.ndarray) -> float:
    """Kolmogorov-Smirnov statistic of exponential data with unknown mean, modified for its size (Stephens 1974)."""
    n = len(logs)
    law = 1 - np.exp(-np.sort(logs) / logs.mean())
    steps = np.arange(n + 1) / n
    distance = max((steps[1:] - law).max(), (law - steps[:-1]).max())
    return float((distance - 0.2 / n) * (np.sqrt(n) + 0.26 + 0.5 / np.sqrt(n)))


def fit_tail(null: np.ndarray) -> Tail:
    """The tail of the null ratios `[m]`, m >= 5: the largest share of TAIL_SHARES that follows a power law.

    If none does, the best-fitting one is returned, with `fits` false.
    """
    ordered = np.sort(null)
    tails: list[Tail] = []
    for share in TAIL_SHARES:
        count = int(share * len(ordered))
        if (tails and count < 10) or ordered[max(1, count)] >= 1:
            continue
        count = max(1, count)
        start = float(ordered[count])
        logs = np.log(start / ordered[:count])
        if logs.sum() <= 0:  # ties: no tail to speak of
            continue
        tails.append(Tail(ordered, start, count, float(logs.sum()), _misfit(logs)))
        if tails[-1].fits:
            return tails[-1]
    if not tails:
        return Tail(ordered, float(ordered[1]), 1, 1.0, np.inf)
    return min(tails, key=lambda tail: tail.misfit)


def benjamini_hochberg(p: np.ndarray, rate: float) -> np.ndarray:
    """Which p-values are discoveries at false-discovery rate `rate` (Benjamini & Hochberg 1995): bool `[n]`."""
    order = np.argsort(p)
    passed = np.flatnonzero(p[order] <= rate * np.arange(1, len(p) + 1) / len(p))
    found = np.zeros(len(p), bool)
    if len(passed):
        found[order[: passed[-1] + 1]] = True
    return found


def proportion_interval(count: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper & Pearson 1934)."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, n - count)) if count < n else 1.0
    return low, high


@dataclass(frozen=True)
class SplitTest:
    """Of the distinct originals that samples come close to, how many are in train; `p` if the split did not matter."""

    originals: int
    in_train: int
    p: float


def split_exchangeability(ratio: np.ndarray, original: np.ndarray, train_groups: int, heldout_groups: int) -> SplitTest:
    """The split test: a generator that copies nothing comes close to held-out groups as often as to training groups.

    `ratio`, `original`: scores of the samples against train and held-out together, and the group (0 .. train_groups-1
    are in train) of the nearest. Among the distinct groups that are hit more closely than CLOSE, the number in train is
    hypergeometric if groups were split at random: exact, whatever the generator, as long as it does not know the split.
    """
    hit = np.unique(original[ratio < CLOSE])
    in_train = int((hit < train_groups).sum())
    p = float(hypergeom.sf(in_train - 1, train_groups + heldout_groups, train_groups, len(hit)))
    return SplitTest(len(hit), in_train, min(1.0, p))


@dataclass(frozen=True)
class Leak:
    """Dimension seen between near neighbours over that between farther ones, with its standard error.

    Near 1 or above for independent items; below when near-duplicates make the nearest neighbours too near.
    """

    consistency: float
    error: float

    @property
    def found(self) -> bool:
        """Whether the split (or the grouping) cannot be trusted: far below 1, and not by chance."""
        return self.consistency < LEAK and self.consistency + 2 * self.error < 1


def leak(
    features: np.ndarray,
    base: np.ndarray,
    own: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Leak | None:
    """Dimension consistency k(1, 11) / k(11, 41) of `features` `[n, d]` among the rows of `base` `[m, d]`.

    k(i, j) = (H_{j-1} - H_{i-1}) / mean log(d_j / d_i), H the harmonic numbers, is the maximum-likelihood dimension
    between the i-th and the j-th neighbour. With `own` and `groups`, neighbours of an item's own group are left out.
    None where fewer than 20 items have 41 neighbours.
    """
    extra = 0 if own is None or groups is None else int(np.bincount(np.unique(groups, return_inverse=True)[1]).max())
    if len(base) < FAR + extra or len(features) < 20:
        return None
    found = search(features, base, FAR + extra)
    distance = found.distance
    if own is not None and groups is not None:
        masked = np.where(groups[found.index] == own[:, None], np.inf, distance)
        distance = np.sort(masked, axis=1)[:, :FAR]
    logs = np.log(np.maximum(distance, 1e-12))
    near = logs[:, MIDDLE - 1] - logs[:, NEAR - 1]
    far = logs[:, FAR - 1] - logs[:, MIDDLE - 1]
    if near.mean() <= 0 or far.mean() <= 0:
        return None

    def harmonic(i: int, j: int) -> float:
        return float((1 / np.arange(i, j)).sum())

    consistency = harmonic(NEAR, MIDDLE) / near.mean() / (harmonic(MIDDLE, FAR) / far.mean())
    relative = far / far.mean() - near / near.mean()  # delta method for the ratio of the two means
    return Leak(float(consistency), float(consistency * relative.std(ddof=1) / np.sqrt(len(relative))))


class Verdict(StrEnum):
    """What the copy test says."""

    CLEAN = "CLEAN"
    COPIES = "COPIES"
    SPLIT_UNRELIABLE = "SPLIT-UNRELIABLE"
    TOO_FEW = "TOO-FEW"


@dataclass(frozen=True)
class Enough:
    """How many there must be before "no copies" means anything."""

    groups: int = 100  # of training and held-out items together: they calibrate the test
    heldout: int = 10  # groups of held-out items
    samples: int = 100

    def lacking(self, train_groups: int, heldout_groups: int, samples: int) -> list[str]:
        """What there is too little of, in words."""
        lack = []
        if samples < self.samples:
            lack.append(f"{samples} samples ({self.samples} are needed)")
        if train_groups + heldout_groups < self.groups:
            lack.append(f"{train_groups + heldout_groups} groups of training and held-out items ({self.groups})")
        if heldout_groups < self.heldout:
            lack.append(f"{heldout_groups} groups of held-out items ({self.heldout})")
        return lack


def judge(p: float, level: float, *, heldout_leaks: bool, train_repeats: bool, enough: bool) -> Verdict:
    """The verdict. Copies can be shown with any number of items; their absence only where they would be seen.

    `heldout_leaks`: held-out items have near-duplicates in train; `train_repeats`: train has near-duplicates in
    different groups, which hide copies; `enough`: whether there is enough of everything, and planted copies were found.
    """
    if heldout_leaks:
        return Verdict.SPLIT_UNRELIABLE
    if p < level:
        return Verdict.COPIES
    if train_repeats:
        return Verdict.SPLIT_UNRELIABLE
    return Verdict.CLEAN if enough else Verdict.TOO_FEW
