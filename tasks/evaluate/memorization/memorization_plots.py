"""Figures about memorization: the closest pairs side by side, the tails of the copy ratio, and the curves of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tasks.common import skeleton
from tasks.evaluate.memorization.certificate import Certificate
from tasks.evaluate.memorization.scorers import laid_over, shown
from tasks.plots import colours
from tasks.plots.colours import FIT, GENERATED, HELDOUT, TRAIN

POSE_HEIGHT = 5.0  # torso lengths in a cell
POSE_DOWN = 0.03  # of a cell: raised hands reach farther from the hips than feet do
SIGMAS_SHOWN = 3  # noise levels in the figure of a training


def _draw_pose(axes: Axes, pose: np.ndarray, column: int, row: int, colour: str) -> None:
    """A skeleton as the camera sees it, inside one cell; left limbs are dashed."""
    bones = np.array(skeleton.BONES)
    left = np.array([all("left" in skeleton.LANDMARKS[end] for end in bone) for bone in bones])
    places = pose[:, :2] / POSE_HEIGHT + (column + 0.5, row + 0.5 + POSE_DOWN)
    for side, style in ((bones[left], "--"), (bones[~left], "-")):
        lines = LineCollection(list(places[side]), colors=colour, alpha=0.85, linewidths=1.3, linestyles=style)
        axes.add_collection(lines)


def _draw(axes: Axes, item: np.ndarray, column: int, row: int, colour: str) -> None:
    """A picture `[h, w, 3]` or a pose `[33, 3]` in one cell of the grid, each cell one unit wide and high."""
    if item.ndim == 3:
        extent = (column + 0.02, column + 0.98, row + 0.98, row + 0.02)
        axes.imshow(np.clip(item, 0, 1), interpolation="nearest", extent=extent)
    else:
        _draw_pose(axes, item, column, row, colour)


def closest_pairs(certificate: Certificate, samples: np.ndarray, train: np.ndarray, rows: int, path: Path) -> None:
    """PNG of the `rows` most suspicious samples: generated | nearest train | difference or overlay | second nearest.

    The sample is shown under the transformation that brought it nearest, so that a mirrored copy lies on its original.
    """
    pictures = samples.ndim == 4
    order = np.argsort(certificate.sample_p, kind="stable")[:rows]
    figure = Figure(figsize=(9.4, 1.9 * len(order) + 0.8), layout="constrained")
    axes = figure.subplots()
    titles = ("generated", "nearest in train", "difference" if pictures else "both", "second, other group")
    for column, title in enumerate(titles):
        axes.text(column + 0.5, -0.06, title, ha="center", fontsize=10)
    for row, i in enumerate(order):
        result = certificate.best_bank(int(i))
        scores = result.samples
        invariance = result.bank.invariances[scores.invariance[i]]
        sample, first = laid_over(result.bank, samples[i], train[scores.first[i]], int(scores.invariance[i]))
        second = shown(result.bank, train[scores.second[i]])
        _draw(axes, sample, 0, row, GENERATED)
        _draw(axes, first, 1, row, HELDOUT)
        if pictures:
            _draw(axes, np.abs(sample - first), 2, row, FIT)
        else:
            _draw(axes, first, 2, row, HELDOUT)
            _draw(axes, sample, 2, row, GENERATED)
        _draw(axes, second, 3, row, TRAIN)
        p = certificate.sample_p[i]
        note = (
            f"d1/d2 = {scores.first_distance[i] / scores.second_distance[i]:.3g}\n"
            f"p {'< 1e-12' if p < 1e-12 else f'= {p:.2g}'}\n{result.bank.name}, {invariance.name}"
        )
        axes.text(-0.06, row + 0.5, note, ha="right", va="center", fontsize=9)
        listed = bool(certificate.copies[i])
        axes.add_patch(
            Rectangle(
                (0.01, row + 0.01),
                3.98,
                0.98,
                fill=False,
                edgecolor=colours.ALARM if listed else colours.FRAME,
                linewidth=2 if listed else 0.6,
            )
        )
    axes.set_xlim(-0.95, 4.02)
    axes.set_ylim(len(order) + 0.02, -0.25)
    axes.set_aspect("equal")
    axes.axis("off")
    figure.suptitle(f"{certificate.verdict.value}: the closest pairs (framed: on the list of copies)", fontsize=11)
    figure.savefig(path, dpi=110)


def _cumulative(axes: Axes, ratios: np.ndarray, colour: str, label: str) -> None:
    ordered = np.sort(ratios)
    axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), where="post", color=colour, label=label)


def ratio_tails(certificate: Certificate, path: Path) -> None:
    """PNG with one panel per bank: log-log distribution functions of d1/d2 for the nulls and the samples, and the tail fit.

    If there are copies, the red line of the samples lies to the left of the others.
    """
    figure = Figure(figsize=(5.6 * len(certificate.banks), 4.2), layout="constrained")
    for axes, result in zip(
        figure.subplots(1, len(certificate.banks), squeeze=False)[0], certificate.banks, strict=True
    ):
        _cumulative(axes, result.null.left_out.ratio, TRAIN, "train, own group left out")
        _cumulative(axes, result.null.heldout.ratio, HELDOUT, "held-out")
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
        axes.legend(fontsize=8, loc="upper left")
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
    figure.savefig(path, dpi=110)


def memorization_curves(training: dict[str, Any], path: Path) -> None:
    """PNG of the evaluations during a training, `training.json`, against images seen.

    Panels: the denoising error of training and held-out examples at the smallest noise levels; the AUC of membership
    inference with its interval; the distance of samples to held-out data. A panel without numbers is left out.
    Memorization begins where the held-out error turns upwards and the AUC leaves 0.5.
    """
    rows, sigmas = training["levels"], training["sigmas"][:SIGMAS_SHOWN]
    shown = [_errors] + [draw for key, draw in (("gaps", _aucs), ("distance", _distances)) if key in rows[-1]]
    figure = Figure(figsize=(6.4, 0.8 + 2.4 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, draw in zip(panels, shown, strict=True):
        draw(axes, rows, sigmas)
        axes.grid(alpha=0.3, linewidth=0.4)
    panels[-1].set_xlabel("images seen")
    figure.savefig(path, dpi=110)


def _errors(axes: Axes, rows: list[dict[str, Any]], sigmas: list[float]) -> None:
    images = [row["images"] for row in rows]
    for level, sigma in enumerate(sigmas):
        for split, name, style in (("train", "train", "--"), ("val", "held-out", "o-")):
            if split in rows[-1]:
                error, label = [row[split][level] for row in rows], f"{name}, sigma {sigma:g}"
                axes.plot(images, error, style, color=colours.series(level), linewidth=1.2, markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("denoising error")
    axes.legend(fontsize=7, ncols=2)


def _aucs(axes: Axes, rows: list[dict[str, Any]], sigmas: list[float]) -> None:
    images = [row["images"] for row in rows]
    for level in range(len(sigmas)):
        auc, low, high = (np.array([row["gaps"][level][key] for row in rows]) for key in ("auc", "low", "high"))
        axes.plot(images, auc, "o-", color=colours.series(level), markersize=3)
        axes.fill_between(images, low, high, color=colours.series(level), alpha=0.12, linewidth=0)
    axes.axhline(0.5, color=TRAIN, linewidth=0.8)
    axes.set_ylim(0.3, 1.02)
    axes.set_ylabel("AUC: train\nagainst held-out")


def _distances(axes: Axes, rows: list[dict[str, Any]], sigmas: list[float]) -> None:
    images = [row["images"] for row in rows]
    value, low, high = (np.array([row["distance"][key] for row in rows]) for key in ("value", "low", "high"))
    axes.errorbar(images, value, yerr=(value - low, high - value), fmt="o-", color=HELDOUT, capsize=3, markersize=3)
    axes.axhline(0, color=TRAIN, linewidth=0.8)
    axes.set_ylabel("kernel distance\nto held-out")
