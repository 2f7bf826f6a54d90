"""folds.html: held-out losses of the short trainings, the law, the prediction, and the certificates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tasks import paths
from tasks.folds.onset import Curve, Prediction
from tasks.plots import colours
from tasks.report import html
from tasks.report.html import Card

CURVES = "curves.png"
WORDS = {"turn": "held-out loss turns", "alarm": "loss gap alarms"}


def render(
    root: Path,
    model: str,
    report: dict[str, Any],
    large: Sequence[Curve],
    small: Sequence[Curve],
    predictions: dict[str, Prediction],
    folder: Path,
) -> str:
    """The page; draws the curves into `folder`."""
    draw(report, large, small, predictions, folder / CURVES)
    verdict = report["verdict"]
    figures = [
        html.Figure.read(
            folder / CURVES,
            "Left: the held-out loss of each short training, relative to a denoiser that knows only the variance of the data; "
            "a circle where it turns, a triangle where the loss gap alarms. Right: both against the number of training "
            "examples, with the law through them and what it predicts for all examples (stars).",
        )
    ]
    closest = folder / "closest.png"
    return html.render(
        "folds.html",
        model=model,
        report=report,
        style=verdict if verdict in ("CLEAN", "COPIES") else "unsure",
        cards=_cards(report),
        figures=figures,
        samples=html.Figure.read(
            paths.sample_folder(root, paths.on_everything(model)) / paths.GRID, "Samples of the model of everything."
        ),
        closest=html.Figure.read(closest, "The most suspicious of them.") if closest.is_file() else None,
        words=WORDS,
        images=_images,
    )


def _images(value: float | None) -> str:
    return "not seen" if value is None else f"{round(value):,}"


def _growth(exponent: float) -> str:
    return f"grows with n to the power {exponent:.2f}" if exponent else "the same for every n"


def _cards(report: dict[str, Any]) -> list[Card]:
    cards = [
        Card("examples", f"{report['examples']:,}", f"all trained on, in {report['groups']:,} groups"),
        Card("trained for", f"{report['images']:,} images", f"{report['planned']:,} were planned"),
    ]
    for kind, words in WORDS.items():
        one = report["predictions"][kind]
        value = "not seen" if one["images"] is None else f"{'after ' if one['bound'] else ''}{round(one['images']):,}"
        note = "" if one["exponent"] is None else f"images, {_growth(one['exponent'])}"
        cards.append(Card(f"predicted: {words}", value, note))
    if report["largest_bound"] is not None:
        bound = report["largest_bound"]
        cards.append(
            Card("copies among samples", f"at most {bound:.1%}" if bound < 1 else "unknown", "largest of all models")
        )
    return cards


def draw(
    report: dict[str, Any],
    large: Sequence[Curve],
    small: Sequence[Curve],
    predictions: dict[str, Prediction],
    path: Path,
) -> None:
    """A PNG with the curves on the left, and onsets against the number of examples on the right."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for curves, colour, label in (
        (large, colours.HELDOUT, "without a fold"),
        (small, colours.SERIES[1], "on one fold"),
    ):
        for number, curve in enumerate(curves):
            left.plot(curve.images, curve.loss, "-", color=colour, linewidth=1.2, label=None if number else label)
            for onset, marker in ((curve.turn, "o"), (curve.alarm, "^")):
                if onset is not None:
                    height = np.interp(np.log(onset), np.log(curve.images), curve.loss)
                    left.plot([onset], [height], marker, color=colour, markersize=6)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("images seen")
    left.set_ylabel("relative held-out loss")
    left.axvline(report["images"], color=colours.FLOOR, linewidth=1, label="length of the whole training")
    _law(right, report, large, small, predictions)
    for axes in (left, right):
        axes.grid(alpha=0.3, linewidth=0.4, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _law(
    axes: Axes,
    report: dict[str, Any],
    large: Sequence[Curve],
    small: Sequence[Curve],
    predictions: dict[str, Prediction],
) -> None:
    n = report["examples"]
    for kind, colour, marker in (("turn", colours.HELDOUT, "o"), ("alarm", colours.ALARM, "^")):
        one = predictions[kind]
        for curves, onsets in ((large, one.large), (small, one.small)):
            seen = [(curve.n, onset) for curve, onset in zip(curves, onsets, strict=True) if onset is not None]
            if seen:
                axes.plot(*zip(*seen, strict=True), marker, color=colour, markersize=5, alpha=0.7)
        if one.images is not None and one.exponent is not None:
            sizes = np.array([small[0].n * 0.9, n])
            label = f"{WORDS[kind]}, {_growth(one.exponent)}"
            axes.plot(sizes, one.images * (sizes / n) ** one.exponent, "-", color=colour, linewidth=1, label=label)
            axes.plot([n], [one.images], "*", color=colour, markersize=13)
    axes.plot([n], [report["images"]], "s", color=colours.FLOOR, label="length of the whole training")
    ticks = sorted({small[0].n, large[0].n, n})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("training examples n")
    axes.set_ylabel("images seen at the onset")
