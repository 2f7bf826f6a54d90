"""Stage `explain <sample key>`: one sample, what it is nearest to, and the source pictures behind that.

Prints the finding and writes `reports/explain/<key>.png`. Needs the reports of the stage `memorization`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks import drawing
from tasks.copies.views import PICTURE_BANKS, POSE_BANKS, SIDE
from tasks.dataset.shards import ShardDataset
from tasks.errors import UserError
from tasks.files import read_json
from tasks.params import Params

TILE = 192  # pixels
QUESTIONS = {"poses": ("poses",), "pictures": ("pictures", "pose_reuse")}  # of each model, in reports/memorization


def _find(root: Path, key: str) -> tuple[str, ShardDataset, int]:
    """The model whose sample this is, its samples, and the sample's place among them."""
    for model in QUESTIONS:
        samples = ShardDataset(root / "samples" / model, "samples")
        if key in samples.keys:
            return model, samples, samples.keys.index(key)
    raise UserError(f"There is no sample {key!r} in {root / 'samples'}.")


def _row(root: Path, question: str, key: str) -> dict[str, Any]:
    """The copy test's finding about one sample."""
    path = root / f"reports/memorization/{question}_samples.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist: the copy test had too little data, or has not been run.")
    return next(row for row in read_json(path) if row["key"] == key)


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


def _look(samples: ShardDataset, i: int, pose: bool) -> np.ndarray:
    """A sample or training item as a person sees it: its skeleton, or its picture."""
    return drawing.draw_pose(samples.pose()[i], TILE) if pose else drawing.enlarge(samples.picture(i), TILE)


def _seen(samples: ShardDataset, i: int, pose: bool, row: dict[str, Any]) -> np.ndarray:
    """The sample in the view in which it was nearest."""
    bank = next(bank for bank in (*PICTURE_BANKS, *POSE_BANKS) if bank.name == row["bank"])
    view = next(view for view in bank.views if view.name == row["view"])
    if pose:
        return drawing.draw_pose(view.apply(samples.pose()[i : i + 1])[0], TILE)
    side = min(SIDE, samples.picture(i).shape[0])
    seen = view.apply(samples.picture(i, side)[None].astype(np.float32) / 255)[0]
    return drawing.enlarge((seen.clip(0, 1) * 255).astype(np.uint8), TILE)


def run(params: Params, root: Path, key: str) -> None:
    """Explain the sample `key`; raises UserError if there is no such sample or no finding about it."""
    model, samples, i = _find(root, key)
    train = ShardDataset(root / "data/shards", "train")
    place = {name: number for number, name in enumerate(train.keys)}
    about = samples.meta(i)
    print(f"{key}: {about['category']}" + (f", of the pose {about['condition']}" if "condition" in about else ""))
    tiles, captions = [], []
    for question in QUESTIONS[model]:
        row = _row(root, question, key)
        nearest, second = place[row["nearest"]], place[row["second"]]
        print(_text(question, row, {row["nearest"]: train.meta(nearest), row["second"]: train.meta(second)}))
        pose = question != "pictures"
        tiles += [_look(samples, i, pose), _seen(samples, i, pose, row), _look(train, nearest, pose)]
        tiles += [drawing.enlarge(train.picture(number), TILE) for number in (nearest, second)]
        captions += [f"sample ({question.replace('_', ' ')})", f"view: {row['view']}", f"nearest, p = {row['p']:.2g}"]
        captions += ["nearest in train", f"second, d1/d2 = {row['ratio']:.2f}"]
    path = root / "reports/explain" / f"{key}.png"
    drawing.save_png(path, drawing.sheet(tiles, 5, captions))
    print(path)
