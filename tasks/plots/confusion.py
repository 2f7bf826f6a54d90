"""A confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.common import files
from tasks.plots import text


def draw(path: Path, counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Write a PNG of counts `[r, c]`: rows are labels, columns what was said; shades are shares of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text.use_fonts()
    figure = Figure(figsize=(2.4 + 0.42 * len(columns), 1.6 + 0.34 * len(rows)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(columns)), [text.label(name) for name in columns], rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [text.label(name) for name in rows], fontsize=8)
    axes.set_xlabel("recognised as")
    axes.set_ylabel("label")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    with files.new_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
