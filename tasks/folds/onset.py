"""From short trainings on parts of the data to the length of a training on all of it.

Two onsets are read off a training. Its held-out loss *turns* where it is lowest; from there on the model fits the training
examples at the expense of others. Its loss gap *alarms* where the losses first tell training examples from held-out ones.
Copies come later than both.

The law: an onset grows with the number n of training examples as T(n) = c n^a, in images seen. Bonnaire et al. 2025 (arXiv
2505.17638) find a = 1 for diffusion models: what matters is how often each example was seen. Here a is measured. With K folds
some models train on K - 1 folds and some on one, which differ by a factor K - 1 in n; the whole set is only K / (K - 1) times
as large as K - 1 folds. a is limited to 0 ... 1, so the prediction never exceeds the published law. A training that ended
before its onset enters with its length, a lower bound. For the alarm a is 0: it depends on how many examples are compared more
than on n, and it often comes at the first evaluation of the small trainings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.train.early_stopping import has_turned

ALARMS = 2  # evaluations in a row that must be alarming


@dataclass(frozen=True)
class Curve:
    """The evaluations of one short training.

    `n`: training examples; `images`: seen at each evaluation; `loss`: relative held-out loss; `alarming`: whether the loss gap
    is alarming. `patience`: evaluations in a row with a clearly higher loss after which it has turned.
    """

    n: int
    images: list[int]
    loss: list[float]
    alarming: list[bool]
    patience: int

    @property
    def turn(self) -> float | None:
        """Images at the lowest held-out loss; None if the training ended too early to know.

        The lowest point of the parabola through the lowest evaluation and its neighbours, against the logarithm of images.
        """
        if not has_turned(self.loss, self.patience):
            return None
        lowest = min(range(len(self.loss)), key=lambda i: self.loss[i])
        if lowest == 0:
            return float(self.images[0])
        x = [math.log(images) for images in self.images[lowest - 1 : lowest + 2]]
        y = self.loss[lowest - 1 : lowest + 2]
        left, right = (y[0] - y[1]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
        if left + right <= 0:  # all three are equal
            return float(self.images[lowest])
        # The slope falls from -left to right between the two midpoints, and is zero here.
        middle = (x[0] + x[1]) / 2 + left / (left + right) * (x[2] - x[0]) / 2
        return math.exp(min(max(middle, x[0]), x[2]))

    @property
    def alarm(self) -> float | None:
        """Images at the first of ALARMS alarming evaluations in a row; None if there are none."""
        for i in range(len(self.alarming) - ALARMS + 1):
            if all(self.alarming[i : i + ALARMS]):
                return float(self.images[i])
        return None


@dataclass(frozen=True)
class Prediction:
    """When an onset is expected with all examples.

    `large`, `small`: the onsets with K - 1 folds and with one, None where there was none. `exponent`: a, None if nothing could
    be measured. `images`: the prediction, None if no training had an onset. `bound`: whether the onset lies there or later,
    since some training ended before its own.
    """

    large: list[float | None]
    small: list[float | None]
    exponent: float | None
    images: float | None
    bound: bool


def predict(kind: str, large: Sequence[Curve], small: Sequence[Curve], n: int) -> Prediction:
    """The onset of a kind, "turn" or "alarm", with n examples."""
    of_large, of_small = ([getattr(one, kind) for one in some] for some in (large, small))
    if all(onset is None for onset in (*of_large, *of_small)):
        return Prediction(of_large, of_small, exponent=None, images=None, bound=True)
    at_large, at_small = _mean(large, of_large), _mean(small, of_small)
    n_large, n_small = (_geometric([one.n for one in some]) for some in (large, small))
    exponent = math.log(at_large / at_small) / math.log(n_large / n_small)
    if (
        kind == "alarm" or None in of_small
    ):  # without an onset theirs is later than assumed, so it grows less than it seems
        exponent = 0.0
    exponent = min(max(exponent, 0.0), 1.0)
    images = at_large * (n / n_large) ** exponent
    return Prediction(of_large, of_small, exponent, images, bound=None in of_large)


def safe_length(prediction: Prediction, fraction: float, planned: int) -> int:
    """Images that the whole set may be trained on: a fraction of the predicted onset, and at most what was planned."""
    return planned if prediction.images is None else max(1, min(planned, round(fraction * prediction.images)))


def _mean(curves: Sequence[Curve], onsets: Sequence[float | None]) -> float:
    """The geometric mean of the onsets; a training without one counts with its length."""
    return _geometric([one.images[-1] if onset is None else onset for one, onset in zip(curves, onsets, strict=True)])


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def grid(first: int, last: int, ratio: float) -> list[int]:
    """Images at which a short training is evaluated: from `first` to `last`, each `ratio` times the one before."""
    points = [float(first)]
    while points[-1] * ratio < last:
        points.append(points[-1] * ratio)
    return sorted({*(round(point) for point in points if point < last), last})
