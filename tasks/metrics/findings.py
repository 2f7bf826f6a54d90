"""Results of a comparison of samples with held-out data: numbers under flat names, and reasons for the absent ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tasks.metrics.estimate import Estimate, TooFewSamples
from tasks.metrics.precision_recall import Manifold, precision_recall_density_coverage


class Findings:
    """Flat metrics, notes on how to read some of them, and the reason for each metric that is absent."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.notes: dict[str, str] = {}
        self.absent: dict[str, str] = {}

    def add(self, name: str, compute: Callable[[], float | Estimate]) -> None:
        """Store what `compute` returns, or the reason it is absent. An Estimate also sets name_low and name_high."""
        try:
            value = compute()
        except TooFewSamples as error:
            self.absent[name] = str(error)
            return
        if isinstance(value, Estimate):
            self.metrics |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            self.metrics[name] = float(value)

    def add_manifold(self, prefix: str, generated: np.ndarray, real: np.ndarray) -> None:
        """Precision, recall, density and coverage under `prefix`."""
        try:
            manifold = precision_recall_density_coverage(generated, real)
        except TooFewSamples as error:
            self.absent |= {f"{prefix}.{name}": str(error) for name in Manifold._fields}
            return
        self.metrics |= {f"{prefix}.{name}": value for name, value in manifold._asdict().items()}
