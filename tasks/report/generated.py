"""The generated pictures in the report: large, beside the poses that they should show, and by category beside real ones."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks import paths
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset.pose_map import places
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.evaluate import pose_accuracy, stored_poses
from tasks.plots import drawing
from tasks.report.html import Figure

LARGE = 252  # pixels of a picture at the top of the report, at least
SMALL = 96
COUNT = 8  # pictures at the top of the report
PER_CATEGORY = 5  # real and generated pictures of a category
CATEGORIES = 8  # the largest


class _Example(NamedTuple):
    """A generated picture with the pose that was asked for and the pose read in it (NaN if nobody was found)."""

    picture: np.ndarray
    asked: np.ndarray
    read: np.ndarray
    category: str


def opening(params: Params, root: Path, folder: Path) -> Figure | None:
    """The first figure of the report: pictures beside the poses that were asked for. None if no picture was read."""
    keys, poses = stored_poses.read(root)
    samples = ShardDataset(paths.sample_folder(root, "pictures"), SAMPLES)
    number = {key: i for i, key in enumerate(samples.keys)}
    chosen = evenly_spaced(len(keys), COUNT)
    if not chosen:
        return None
    subset = samples.take([number[keys[i]] for i in chosen])
    examples = [
        _Example(subset.picture(n), asked, poses[i], str(subset.meta(n)["category"]))
        for n, (i, asked) in enumerate(zip(chosen, subset.poses(), strict=True))
    ]
    tiles, captions = [], []
    side = max(LARGE, len(examples[0].picture))  # enlarged pictures are shown as they are
    for example in examples:
        points = places(example.asked[None], params.curate.margin)[0]
        tiles += [drawing.draw_joints(points, example.asked[:, 2], side), drawing.smooth(example.picture, side)]
        captions += [f"asked for: {example.category}", _outcome(example)]
    path = folder / "generated.png"
    drawing.save_png(path, drawing.sheet(tiles, 4, captions, caption_size=15))
    return Figure.read(
        path,
        "Each pair: the pose that was asked for, of a held-out person, and the picture that the model made of it. The "
        "pictures are chosen at even steps from all samples, not by quality.",
    )


def _outcome(example: _Example) -> str:
    if not np.isfinite(example.read).all():
        return "nobody found"
    errors = pose_accuracy.joint_errors(example.read[None], example.asked[None])[0]
    return f"{(errors < pose_accuracy.NEAR).sum()} of {len(errors)} joints within {pose_accuracy.NEAR} torso"


def by_category(root: Path, folder: Path) -> list[Figure]:
    """For the largest categories a row of real training pictures beside a row of generated ones, at the same size."""
    train = ShardDataset(root / paths.SHARDS, "train").pictured()
    samples = ShardDataset(paths.sample_folder(root, "pictures"), SAMPLES)
    if not len(train) or not len(samples):
        return []
    size = samples.picture(0).shape[0]
    real, generated = _rows(train), _rows(samples)
    common = Counter({name: len(rows) for name, rows in real.items() if name in generated})
    tiles, captions = [], []
    for name, _ in sorted(common.items(), key=lambda item: (-item[1], item[0]))[:CATEGORIES]:
        for dataset, rows, label in ((train, real[name], "real"), (samples, generated[name], "generated")):
            chosen = [rows[i] for i in evenly_spaced(len(rows), PER_CATEGORY)]
            blank = PER_CATEGORY - len(chosen)
            tiles += [drawing.smooth(dataset.picture(i, size), SMALL) for i in chosen]
            tiles += [np.full((SMALL, SMALL, 3), 255, np.uint8)] * blank
            captions += [f"{name}, {label}"] * len(chosen) + [""] * blank
    if not tiles:
        return []
    path = folder / "by-category.png"
    drawing.save_png(path, drawing.sheet(tiles, 2 * PER_CATEGORY, captions))
    return [Figure.read(path, "Real training pictures and generated pictures of the same category, at the same size.")]


def _rows(dataset: ShardDataset) -> dict[str, list[int]]:
    """The numbers of the samples of each category."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, meta in enumerate(dataset.metas()):
        rows[str(meta["category"])].append(i)
    return rows
