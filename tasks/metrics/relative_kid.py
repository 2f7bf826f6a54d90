"""Which of two models is nearer to a reference: the difference of two kernel distances, with its own interval.

Both distances share the reference, and two models that sample from the same seeds make samples in pairs. The interval of the
difference takes both into account, so it is narrower than two separate intervals suggest.
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
        """The squared distance to the reference without the reference's own term, which cancels in a difference."""
        n, m = self.n, self.m
        return float(self.all_within / (n * (n - 1)) - 2 * self.all_across / (n * m))

    def without_each(self) -> np.ndarray:
        """`value` without each vector of the sample in turn, `[n]`."""
        n, m = self.n, self.m
        within = (self.all_within - 2 * self.within) / ((n - 1) * (n - 2))
        values: np.ndarray = within - 2 * (self.all_across - self.across) / ((n - 1) * m)
        return values

    def without_each_reference(self) -> np.ndarray:
        """`value` without each vector of the reference in turn, `[m]`."""
        n, m = self.n, self.m
        values: np.ndarray = self.all_within / (n * (n - 1)) - 2 * (self.all_across - self.back) / (n * (m - 1))
        return values


def relative_kernel_distance(
    new: np.ndarray, old: np.ndarray, reference: np.ndarray, *, level: float = 0.95
) -> Estimate:
    """kid(new, reference) - kid(old, reference); below 0 if `new` is nearer.

    Row i of `new` and of `old` `[n, d]` was sampled from the same noise and the same condition. Both terms are unbiased
    squared MMDs with kernel (x.y/d + 1)^3, as in `kid`. The interval comes from the delete-one jackknife over pairs and over
    reference vectors. Comparing two models by the difference of MMDs follows Bounliphone et al. 2016 (arXiv 1511.04581).
    Raises TooFewSamples below 20 vectors a side.
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
    of_new, of_old = _Sums(new, reference), _Sums(old, reference)
    value = of_new.value() - of_old.value()
    pairs = of_new.without_each() - of_old.without_each()
    references = of_new.without_each_reference() - of_old.without_each_reference()
    variance = (n - 1) * pairs.var() + (m - 1) * references.var()
    half_width = float(ndtri(0.5 + level / 2) * np.sqrt(variance))
    return Estimate(value, value - half_width, value + half_width, 0.0, n, m)
