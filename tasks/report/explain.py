"""`explain KEY`: a sample, the training examples nearest to it, and their pictures.

Prints the result of the memorization test and writes `reports/explain/<key>.png`. It needs the reports of the
stage `memorization`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common.errors import UserError
from tasks.common.files import read_json
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset, resized
from tasks.dataset.splits import COMPARISON, SAMPLES
from tasks.evaluate.memorization.invariances import PICTURE_BANKS, PICTURE_SIDE, POSE_BANKS, AnyBank, Invariance
from tasks.evaluate.memorization.scorers import laid_over
from tasks.evaluate.memorization.stage import poses_in_pictures
from tasks.plots import drawing

TILE = 192  # pixels
QUESTIONS = {  # model and split of the samples -> the questions in reports/memorization about them
    ("poses", SAMPLES): ("poses",),
    ("pictures", SAMPLES): ("pictures", "pose_reuse"),
    ("pictures", COMPARISON): ("train_conditions",),
}
OF_POSES = ("poses", "pose_reuse")


def _find(root: Path, key: str) -> tuple[tuple[str, ...], ShardDataset, int]:
    """The questions about this sample, the samples that it belongs to, and its number among them."""
    for (model, split), questions in QUESTIONS.items():
        samples = ShardDataset(paths.sample_folder(root, model), split)
        if key in samples.keys:
            return questions, samples, samples.keys.index(key)
    raise UserError(f"There is no sample {key!r} in {root / paths.SAMPLES} that the memorization test judged.")


def _row(root: Path, question: str, key: str) -> dict[str, Any] | None:
    """The result for one sample; None if there were too few data, or if nobody was found in the picture."""
    report = root / paths.MEMORIZATION
    if not report.is_dir():
        raise UserError(f"{report} does not exist: run the memorization stage first.")
    path = report / f"{question}_samples.json"
    rows = read_json(path) if path.is_file() else []
    return next((row for row in rows if row["key"] == key), None)


def _text(question: str, row: dict[str, Any], metas: dict[str, dict[str, Any]]) -> str:
    listed = "on the list of copies" if row["listed"] else "not on the list of copies"
    lines = [
        f"{question.replace('_', ' ')}: p = {row['p']:.2g}, {listed}; d1/d2 = {row['distance']:.4g} / "
        f"{row['second_distance']:.4g} = {row['ratio']:.3g} in {row['bank']}, view: {row['view']}"
    ]
    for role in ("nearest", "second"):
        meta = metas[row[role]]
        lines.append(f"  {role}: {row[role]}, {meta['category']}, from {meta['source']}, group {meta['group']}")
    return "\n".join(lines)


def _source(train: ShardDataset, key: str) -> np.ndarray:
    """The picture of a training example as it is in the shards; the skeleton of a motion capture."""
    pictured = train.pictured()
    if key in pictured.keys:
        return drawing.enlarge(pictured.picture(pictured.keys.index(key)), TILE)
    return drawing.draw_pose(train.poses()[train.keys.index(key)], TILE)


def _pose(root: Path, samples: ShardDataset, key: str, question: str) -> np.ndarray:
    """The pose `[1, 33, 3]` that the question is about: the sample's own, or the one read in its picture."""
    keys, poses = poses_in_pictures(root) if question == "pose_reuse" else (samples.keys, samples.poses())
    pose: np.ndarray = poses[keys.index(key)][None]
    return pose


def _bank_and_view(row: dict[str, Any]) -> tuple[AnyBank, Invariance]:
    """The bank and the view in which the sample was nearest."""
    bank = next(bank for bank in (*PICTURE_BANKS, *POSE_BANKS) if bank.name == row["bank"])
    return bank, next(view for view in bank.invariances if view.name == row["view"])


def _poses(pose: np.ndarray, nearest: np.ndarray, row: dict[str, Any]) -> list[np.ndarray]:
    """Skeletons of poses `[1, 33, 3]`: the sample, the sample as it was compared, the nearest as it was compared."""
    bank, view = _bank_and_view(row)
    compared = laid_over(bank, pose[0], nearest[0], bank.invariances.index(view))
    return [drawing.draw_pose(shown, TILE) for shown in (pose[0], *compared)]


def _pictures(picture: np.ndarray, nearest: Callable[[int], np.ndarray], row: dict[str, Any]) -> list[np.ndarray]:
    """The sample, the sample as it was compared, and its difference to the nearest, which is `nearest(side)`."""
    side = min(PICTURE_SIDE, picture.shape[0])
    bank, view = _bank_and_view(row)
    seen, original = laid_over(bank, resized(side, picture), nearest(side), bank.invariances.index(view))
    compared = [(shown.clip(0, 1) * 255).astype(np.uint8) for shown in (seen, np.abs(seen - original))]
    return [drawing.enlarge(shown, TILE) for shown in (picture, *compared)]


def run(params: Params, root: Path, key: str) -> None:
    """Explain the sample `key`. Raises UserError if there is no such sample or no result for it."""
    questions, samples, i = _find(root, key)
    train = ShardDataset(root / paths.SHARDS, "train")
    place = {name: number for number, name in enumerate(train.keys)}
    about = samples.meta(i)
    asked = f", asked to show the pose of {about['condition']}" if "condition" in about else ""
    print(f"{key}: {about['category']}{asked}")
    tiles, captions = [], []
    for question in questions:
        row = _row(root, question, key)
        if row is None:
            print(f"{question.replace('_', ' ')}: not judged: too few data, or nobody was found in the picture")
            continue
        pair = row["nearest"], row["second"]
        print(_text(question, row, {name: train.meta(place[name]) for name in pair}))
        near = place[row["nearest"]]
        if question in OF_POSES:
            tiles += _poses(_pose(root, samples, key, question), train.poses()[near][None], row)
        else:
            tiles += _pictures(samples.picture(i), partial(train.picture, near), row)
        tiles += [_source(train, name) for name in pair]
        third = "nearest pose" if question in OF_POSES else "difference to nearest"
        captions += [f"sample ({question.replace('_', ' ')})", f"view: {row['view']}", third]
        captions += [f"nearest, p = {row['p']:.2g}", f"second, d1/d2 = {row['ratio']:.3g}"]
    if not tiles:
        raise UserError(f"The memorization test had too few data to judge {key!r}.")
    path = root / paths.EXPLAIN / f"{key}.png"
    drawing.save_png(path, drawing.sheet(tiles, 5, captions))
    print(path)
