"""`python -m benchmarks.memorization_speed`: how long a certificate of pictures takes (S4), on all cores of the machine.

1000 training, 250 held-out and 1000 generated pictures of 64 pixels: all banks (26 views of every picture, and
alignment), and pixels alone.
"""

from __future__ import annotations

import sys

import numpy as np

from benchmarks.report import best_seconds, finish, table
from benchmarks.synthetic_pictures import compared_array, figure, figures
from tasks.evaluate.memorization import positive_control
from tasks.evaluate.memorization.certificate import certify, score_samples
from tasks.evaluate.memorization.invariances import PICTURE_BANKS, AnyBank, Bank, Invariance, colours, identity
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.metrics.features import pixels

PIXELS = Bank("pixels as they are", (Invariance("as is", identity),), pixels, identity, colours)


def main() -> int:
    """Print the table and the JSON line."""
    train, heldout = (
        Items(figures(range(1000)), np.arange(1000)),
        Items(figures(range(1000, 1250)), np.arange(1000, 1250)),
    )
    samples = figures(range(2000, 3000))

    def seconds(banks: tuple[AnyBank, ...]) -> float:
        def once() -> None:
            compared = make_reference(banks, train, heldout)
            scored = score_samples("pictures", samples, compared)
            plant = positive_control.pictures(1000, lambda row: np.asarray(figure(row)), compared_array)
            certify("pictures", scored, compared, plant, np.random.default_rng(0))

        return best_seconds(once, times=1)

    full, alone = seconds(PICTURE_BANKS), seconds((PIXELS,))
    print(table([("certificate", "seconds"), ("all banks", f"{full:.2f}"), ("pixels alone", f"{alone:.2f}")]))
    goals = {"S4 all banks <= 60 s": full <= 60, "S4 pixels alone <= 5 s": alone <= 5}
    return finish("memorization_speed", {"all_banks_seconds": full, "pixels_seconds": alone}, goals)


if __name__ == "__main__":
    sys.exit(main())
