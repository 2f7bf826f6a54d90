"""The colours of all plots and drawings. Colour-blind readers can tell them apart."""

from __future__ import annotations

# Skeletons: left is warm, right is cool, the middle is grey, in every picture.
LEFT, RIGHT, MIDDLE = (213, 94, 0), (0, 114, 178), (90, 90, 90)
PAPER, INK, DOT = (255, 255, 255), (40, 40, 40), (196, 196, 196)

# What is compared: the same in all plots.
GENERATED, HELDOUT, TRAIN = "#c0392b", "#2c3e50", "#7f8c8d"
FIT = "#2980b9"  # a fitted curve, or a number with its interval
ALARM = "#c0392b"  # limits, and what exceeds them
FLOOR = "#27ae60"  # what is expected without a fault of the model
FRAME = "#cccccc"
ZERO = "#000000"  # the line at zero

# Of a legend, one after another.
SERIES = (
    "#1f5a96", "#c45a11", "#3c7d3c", "#7d3c7d", "#555555", "#a08000", "#2a8c8c", "#b03060", "#8c5a2b", "#6a7fd0",
)  # fmt: skip
OTHERS = "#b3b3b3"  # all that have no colour of their own


def series(number: int) -> str:
    """The colour of the series with this number; they are repeated."""
    return SERIES[number % len(SERIES)]
