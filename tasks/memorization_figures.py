"""Figures of the memorization report: the closest pairs side by side, and the tails of the copy ratio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from tasks import skeleton
from tasks.certificate import Certificate

LISTED_COLOUR = "#c0392b"
GENERATED, HELDOUT, TRAIN, FIT = "#c0392b", "#2c3e50", "#7f8c8d", "#2980b9"


def _draw_pose(axes: Axes, pose: np.ndarray, colour: str, alpha: float = 1.0) -> None:
    """A skeleton seen from the camera, left limbs dashed."""
    bones = np.array(skeleton.BONES)
    left = np.array([all("left" in skeleton.LANDMARKS[end] for end in bone) for bone in bones])
    flat = pose[:, :2] * (1, -1)
    for some, style in ((bones[left], "--"), (bones[~left], "-")):
        axes.add_collection(
            LineCollection(list(flat[some]), colors=colour, alpha=alpha, linewidths=1.3, linestyles=style)
        )


def _show(axes: Axes, items: list[np.ndarray], colours: list[str]) -> None:
    """One picture, or skeletons on top of each other."""
    axes.set_xticks([])
    axes.set_yticks([])
    if items[0].shape[-1] == 3 and items[0].ndim == 3:
        axes.imshow(np.clip(items[0], 0, 1), interpolation="nearest")
        return
    for pose, colour in zip(items, colours, strict=True):
        _draw_pose(axes, pose, colour, 0.8)
    axes.set_xlim(-2.2, 2.2)
    axes.set_ylim(-2.4, 2.0)
    axes.set_aspect("equal")


def closest_pairs(certificate: Certificate, samples: np.ndarray, train: np.ndarray, rows: int, path: Path) -> None:
    """PNG of the `rows` most suspicious samples: generated | nearest train | difference or overlay | second nearest.

    The sample is shown in the view in which it was nearest, so that a mirrored copy lies on its original.
    """
    pictures = samples.ndim == 4
    order = np.argsort(certificate.sample_p, kind="stable")[:rows]
    figure = Figure(figsize=(8.6, 1.95 * len(order) + 0.9), layout="constrained")
    grid = figure.subplots(len(order), 4, squeeze=False)
    titles = ("generated", "nearest in train", "difference" if pictures else "both", "second, other group")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, fontsize=10)
    for row, i in zip(grid, order, strict=True):
        result = certificate.best_bank(int(i))
        scores = result.samples
        view = result.bank.views[scores.view[i]]
        sample = view.apply(samples[i : i + 1])[0]
        first, second = train[scores.first[i]], train[scores.second[i]]
        _show(row[0], [sample], [GENERATED])
        _show(row[1], [first], [HELDOUT])
        if pictures:
            _show(row[2], [np.abs(sample - first)], [FIT])
        else:
            _show(row[2], [first, sample], [HELDOUT, GENERATED])
        _show(row[3], [second], [TRAIN])
        p = certificate.sample_p[i]
        row[0].set_ylabel(
            f"d1/d2 = {scores.first_distance[i] / scores.second_distance[i]:.3g}\np {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'}\n"
            f"{result.bank.name}, {view.name}",
            fontsize=8,
            rotation=0,
            ha="right",
            va="center",
        )
        if certificate.copies[i]:
            for axes in row:
                for spine in axes.spines.values():
                    spine.set_color(LISTED_COLOUR)
                    spine.set_linewidth(2)
    figure.suptitle(f"{certificate.verdict.value}: the closest pairs (framed: on the list of copies)", fontsize=11)
    figure.savefig(path, dpi=110)


def _cumulative(axes: Axes, ratios: np.ndarray, colour: str, label: str) -> None:
    ordered = np.sort(ratios)
    axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=colour, label=label)


def ratio_tails(certificate: Certificate, path: Path) -> None:
    """PNG with one panel a bank: log-log distribution functions of d1/d2 for the nulls, the samples, and the tail fit.

    Copies are a red line that leaves the others to the left.
    """
    figure = Figure(figsize=(5.6 * len(certificate.banks), 4.2), layout="constrained")
    for axes, result in zip(
        figure.subplots(1, len(certificate.banks), squeeze=False)[0], certificate.banks, strict=True
    ):
        _cumulative(axes, result.left_out.ratio, TRAIN, "train, own group left out")
        _cumulative(axes, result.heldout.ratio, HELDOUT, "held-out")
        _cumulative(axes, result.samples.ratio, GENERATED, "generated")
        tail = result.tail
        smallest = min(float(result.samples.ratio.min()), float(tail.null[0]))
        left = max(smallest, 1e-3) * 0.8
        t = np.geomspace(left, tail.start, 100)
        fit = "tail fit" if tail.fits else "tail fit (rejected)"
        axes.plot(t, tail.p_values(t), ":" if tail.fits else "--", color=FIT, label=f"{fit}, k = {tail.dimension:.1f}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(left, 1.05)
        axes.set_ylim(0.3 / max(len(result.samples.ratio), tail.size), 1.2)
        axes.set_xlabel("d1/d2 (1: no nearer to one training item than to the next)")
        axes.set_ylabel("share of items below")
        axes.set_title(result.bank.name, fontsize=10)
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.savefig(path, dpi=110)
