"""Which of two samples is nearer to a third: the difference of two kernel distances, with its own interval.

The two distances share the third sample, and two models that draw with the same seeds make samples in pairs. The interval of
the difference knows of both, and is narrower than the two intervals apart.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from tasks.metrics.estimate import Estimate, TooFewSamples, check_features
from tasks.metrics.kid import KID_NEEDS, kernel_row_sums


class _Sums:
    """Kernel sums of a sample `[n, d]` with itself and with the reference `[m, d]`."""

    def __init__(self, sample: np.ndarray, reference: np.ndarray) -> None:
        d = sample.shape[1]
        self.n, self.m = len(sample), len(reference)
        self.within = kernel_row_sums(sample, sample) - ((sample * sample).sum(axis=1) / d + 1) ** 3  # [n]
        self.across = kernel_row_sums(sample, reference)  # [n]
        self.back = kernel_row_sums(reference, sample)  # [m]
        self.all_within, self.all_across = self.within.sum(), self.across.sum()

    def value(self) -> float:
        """The squared distance to the reference but for the reference's own part, which is the same for all samples."""
        n, m = self.n, self.m
        return float(self.all_within / (n * (n - 1)) - 2 * self.all_across / (n * m))

    def without_each(self) -> np.ndarray:
        """The same without one vector of the sample, `[n]`."""
        n, m = self.n, self.m
        left = (self.all_within - 2 * self.within) / ((n - 1) * (n - 2))
        return left - 2 * (self.all_across - self.across) / ((n - 1) * m)

    def without_each_reference(self) -> np.ndarray:
        """The same without one vector of the reference, `[m]`."""
        n, m = self.n, self.m
        return self.all_within / (n * (n - 1)) - 2 * (self.all_across - self.back) / (n * (m - 1))


def relative_kernel_distance(
    new: np.ndarray, old: np.ndarray, reference: np.ndarray, *, level: float = 0.95
) -> Estimate:
    """kid(new, reference) - kid(old, reference), below 0 where `new` is nearer.

    `new`, `old` `[n, d]`: row i of both was drawn with the same noise and the same condition. Both terms are unbiased
    squared MMDs with kernel (x.y/d + 1)^3, as in `distance.kid`; the interval is the delete-one jackknife's over pairs and
    reference vectors. The idea of comparing two models by the difference of MMDs is Bounliphone et al. 2016 (arXiv
    1511.04581). Raises TooFewSamples below 20 vectors a side.
    """
    d = check_features("the new sample", new).shape[1]
    check_features("the old sample", old, d)
    check_features("the reference", reference, d)
    n, m = len(new), len(reference)
    if len(old) != n:
        raise ValueError(f"the samples must be pairs, and there are {n} and {len(old)}")
    if min(n, m) < KID_NEEDS:
        raise TooFewSamples("the difference of kernel distances", min(n, m), KID_NEEDS)
    new, old, reference = (part.astype(np.float64) for part in (new, old, reference))
    ours, theirs = _Sums(new, reference), _Sums(old, reference)
    value = ours.value() - theirs.value()
    pairs = ours.without_each() - theirs.without_each()
    references = ours.without_each_reference() - theirs.without_each_reference()
    variance = (n - 1) * pairs.var() + (m - 1) * references.var()
    reach = float(ndtri(0.5 + level / 2) * np.sqrt(variance))
    return Estimate(value, value - reach, value + reach, 0.0, n, m)
