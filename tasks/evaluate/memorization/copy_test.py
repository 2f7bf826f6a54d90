"""The copy test: are generated samples nearer to training items than held-out items ever are?

`Tail` turns copy scores (copy_score.py) into p-values, `split_exchangeability` asks the same question without a model of the
scores, `leak` checks that the split can be trusted, and `judge` gives the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy.stats import hypergeom

from tasks.metrics.neighbours import search

TAIL_SHARES = (0.2, 0.1, 0.05)  # of the null ratios, tried in turn until the power law fits
CLOSE = 0.5  # samples with a smaller ratio take part in the split test
NEAR, MIDDLE, FAR = 1, 11, 41  # neighbour ranks between which the leak detector measures the dimension
LEAK = 0.9  # ratio of dimensions below which held-out items have near-duplicates in train
KS_CRITICAL = 1.308  # at 1%, exponential law of unknown mean (Stephens 1974, table 1.4)


@dataclass(frozen=True)
class Tail:
    """The lower tail of the null ratios: below `start` the ratio follows a power law, P(r <= t) ~ t^dimension.

    `count` of the `size` null ratios lie below `start`, and `log_sum` is the sum of their log(start / r). If the power law
    does not fit, p-values are conformal.
    """

    null: np.ndarray  # sorted
    start: float
    count: int
    log_sum: float
    misfit: float  # Kolmogorov-Smirnov statistic, as modified by Stephens

    @property
    def size(self) -> int:
        """Number of null ratios."""
        return len(self.null)

    @property
    def fits(self) -> bool:
        """Whether the logarithms pass the goodness-of-fit test of the exponential law at 1%."""
        return self.misfit <= KS_CRITICAL

    @property
    def dimension(self) -> float:
        """The exponent of the tail (Hill 1975), which estimates the intrinsic dimension of the data."""
        return self.count / self.log_sum

    def p_values(self, ratio: np.ndarray) -> np.ndarray:
        """P(a null ratio is as small or smaller) for each ratio, valid in finite samples: float64 `[n]`.

        With x = log(start / r) exponential above the (count+1)-th order statistic, x / log_sum has the survival
        function (1 + x / log_sum)^-count, which includes the uncertainty of the fitted exponent. Without a fit, the
        conformal (1 + #{null <= r}) / (size + 1) (Bates et al. 2023, eq. 2).
        """
        rank = np.searchsorted(self.null, ratio, side="right")
        conformal = (1 + rank) / (self.size + 1)
        if not self.fits:
            return conformal
        excess = np.log(self.start / np.minimum(ratio, self.start))
        fitted = (self.count + 1) / (self.size + 1) * (1 + excess / self.log_sum) ** -float(self.count)
        return np.where(ratio < self.start, fitted, conformal)

    def ratio_at(self, p: float) -> float:
        """The ratio whose p-value is `p`: the largest at which a sample is still found at that level."""
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
        if logs.sum() <= 0:  # ties only
            continue
        tails.append(Tail(ordered, start, count, float(logs.sum()), _misfit(logs)))
        if tails[-1].fits:
            return tails[-1]
    if not tails:
        return Tail(ordered, float(ordered[1]), 1, 1.0, np.inf)
    return min(tails, key=lambda tail: tail.misfit)


@dataclass(frozen=True)
class SplitTest:
    """How many distinct originals the samples come close to, and how many of these are in train.

    `p`: probability of as many or more in train if the samples did not depend on the split.
    """

    originals: int
    in_train: int
    p: float


def split_exchangeability(ratio: np.ndarray, original: np.ndarray, train_groups: int, heldout_groups: int) -> SplitTest:
    """The split test: a generator that copies nothing comes close to held-out groups as often as to training groups.

    `ratio`, `original`: scores of the samples against train and held-out together, and the group (0 .. train_groups-1
    are in train) of the nearest item. Among the distinct groups with a sample closer than CLOSE, the number in train is
    hypergeometric if groups were split at random. That is exact for every generator that does not know the split.
    """
    hit = np.unique(original[ratio < CLOSE])
    in_train = int((hit < train_groups).sum())
    p = float(hypergeom.sf(in_train - 1, train_groups + heldout_groups, train_groups, len(hit)))
    return SplitTest(len(hit), in_train, min(1.0, p))


@dataclass(frozen=True)
class Leak:
    """Dimension estimated from near neighbours over that from farther ones, with its standard error.

    About 1 or more for independent items, less if near-duplicates make the nearest neighbours too near.
    """

    consistency: float
    error: float

    @property
    def found(self) -> bool:
        """Whether the split (or the grouping) cannot be trusted: the ratio is well below 1, and not by chance."""
        return self.consistency < LEAK and self.consistency + 2 * self.error < 1


def leak(
    features: np.ndarray, base: np.ndarray, groups: np.ndarray | None = None, own: np.ndarray | None = None
) -> Leak | None:
    """Dimension consistency k(1, 11) / k(11, 41) of `features` `[n, d]` among the rows of `base` `[m, d]`.

    k(i, j) = (H_{j-1} - H_{i-1}) / mean log(d_j / d_i), H the harmonic numbers, is the maximum-likelihood dimension
    between the i-th and the j-th neighbour. `groups` `[m]` are given if `features` are rows of `base`, and `own` `[n]`
    are their groups (default: `features` is `base` itself): neighbours of an item's own group are then left out. None if
    there are fewer than 20 items, too few rows, or only coincident neighbours.
    """
    largest_group = 0 if groups is None else int(np.unique(groups, return_counts=True)[1].max())
    if len(base) < FAR + largest_group or len(features) < 20:
        return None
    neighbours = search(features, base, FAR + largest_group)
    distance = neighbours.distance
    if groups is not None:
        own = groups if own is None else own
        masked = np.where(groups[neighbours.index] == own[:, None], np.inf, distance)
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
    """The outcome of the copy test."""

    CLEAN = "CLEAN"
    COPIES = "COPIES"
    SPLIT_UNRELIABLE = "SPLIT-UNRELIABLE"
    TOO_FEW = "TOO-FEW"
    LOW_POWER = "LOW-POWER"


@dataclass(frozen=True)
class Enough:
    """How many items and samples are needed before "no copies" means anything."""

    groups: int = 100  # of training and held-out items together, which calibrate the test
    heldout: int = 10  # groups of held-out items
    samples: int = 100

    def lacking(self, train_groups: int, heldout_groups: int, samples: int) -> list[str]:
        """What there is too little of, one phrase each."""
        missing = []
        if samples < self.samples:
            missing.append(f"{samples} samples ({self.samples} are needed)")
        if train_groups + heldout_groups < self.groups:
            missing.append(f"{train_groups + heldout_groups} groups of training and held-out items ({self.groups})")
        if heldout_groups < self.heldout:
            missing.append(f"{heldout_groups} groups of held-out items ({self.heldout})")
        return missing


def judge(p: float, level: float, *, heldout_leaks: bool, train_repeats: bool, enough: bool, powerful: bool) -> Verdict:
    """The verdict. Copies can be shown with any number of items, their absence only if copies would be found.

    `heldout_leaks`: held-out items have near-duplicates in train; `train_repeats`: train has near-duplicates in
    different groups, which hide copies; `enough`: whether there are enough items and samples; `powerful`: whether enough of the
    planted copies were found.
    """
    if heldout_leaks:
        return Verdict.SPLIT_UNRELIABLE
    if p < level:
        return Verdict.COPIES
    if train_repeats:
        return Verdict.SPLIT_UNRELIABLE
    if not enough:
        return Verdict.TOO_FEW
    return Verdict.CLEAN if powerful else Verdict.LOW_POWER
