"""Plots of numbers with their intervals, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tasks.common import files
from tasks.plots import colours, text


class Row(NamedTuple):
    """A labelled number. Without an interval `low` and `high` equal it. `series` picks the colour."""

    label: str
    value: float
    low: float
    high: float
    series: int = 0


def draw(
    path: Path, panels: Sequence[tuple[str, Sequence[Row]]], names: Sequence[str] = (), zero: bool = False
) -> None:
    """Write a PNG with one panel for each (title, rows), rows from top to bottom.

    `names`: the series in the legend. `zero`: draw a line at 0, for differences.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    text.use_fonts()
    total = sum(len(rows) for _, rows in panels)
    figure = Figure(figsize=(7.2, 0.9 + 0.28 * total + 0.55 * len(panels)), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    heights = [len(rows) + 1 for _, rows in panels]
    for axes, (title, rows) in zip(
        figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0], panels, strict=True
    ):
        for place, row in enumerate(rows):
            colour = colours.series(row.series)
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2, alpha=0.5)
            axes.plot([row.value], [place], "o", color=colour, markersize=5)
        axes.set_yticks(range(len(rows)), [text.label(row.label) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_title(text.label(title), loc="left", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.locator_params(axis="x", nbins=7)
        axes.spines[["top", "right"]].set_visible(False)
        if zero:
            axes.axvline(0, color=colours.ZERO, linewidth=0.8)
    if len(names) > 1:
        handles = [figure.axes[0].plot([], [], "o-", color=colours.series(i))[0] for i in range(len(names))]
        figure.legend(
            handles,
            [text.label(name) for name in names],
            loc="outside lower center",
            ncols=min(len(names), 3),
            frameon=False,
            fontsize=9,
        )
    with files.new_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
