"""`python -m tasks generate`: pictures of people in the poses that are asked for, checked by looking at them again.

Samples are drawn in rounds. MediaPipe reads the pose in every picture, and those are kept in which enough joints are where
they were asked to be (rejection by re-estimation). What is kept lies in `generated/`:

    generated-000000.tar, index.json    shards: picture, pose, and its category, seed, number and share of right joints
    coco.json, images/                  the same for tools that train pose estimators
    generated.json                      how many were drawn and kept, and how many would be by chance
    grid.png                            the pose asked for, the picture, the pose read from it
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from tasks import paths
from tasks.common import files, machine
from tasks.common.errors import DataError, UserError
from tasks.common.images import encode_png
from tasks.config.params import Generate, Params
from tasks.dataset import shards
from tasks.dataset.pose_map import places
from tasks.evaluate import pose_accuracy
from tasks.plots import drawing
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample import coco
from tasks.sample.requests import Artist, Request, Samples

log = logging.getLogger(__name__)

ROUND = 128  # samples drawn before they are looked at
SHOWN = 48
SPLIT = "generated"
Reader = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Kept:
    """One sample that shows what was asked for."""

    number: int
    category: str
    pose: np.ndarray  # [33, 3], asked for
    picture: np.ndarray  # uint8 [s, s, 3]
    read: np.ndarray  # [33, 3]
    pck: float  # share of the limb joints that are right


@dataclass(frozen=True)
class Found:
    """What was kept, of how many that were drawn, and the share that would have been kept by chance: of the same pictures,
    each compared with the pose that was asked of another one."""

    kept: list[Kept]
    drawn: int
    by_chance: float

    @property
    def acceptance(self) -> float:
        """The share that was kept."""
        return len(self.kept) / self.drawn


def right_joints(read: np.ndarray, asked: np.ndarray, near: float) -> np.ndarray:
    """Share of the 12 limb joints within `near` torso lengths in the picture's plane, `[n]`; 0 where nobody was found.

    Depth is left out: a picture does not show it. (PCK, Yang & Ramanan 2013, with the torso as the unit.)
    """
    errors = pose_accuracy.joint_errors(read[..., :2], asked[..., :2])
    return np.where(np.isfinite(errors), errors <= near, False).mean(axis=1)


def sample(artist: Artist, wish: Generate, read: Reader) -> Found:
    """Draw and look until `wish.count` are kept. What is left of the last round is not counted.

    Raises DataError as soon as it is plain that fewer than the share `wish.min_acceptance` will do: after the first round
    that has drawn 3 / min_acceptance samples (of which then, were the share reached, none is kept with probability 5 %),
    and whenever count / min_acceptance samples are drawn.
    """
    kept: list[Kept] = []
    drawn = lucky = 0
    categories = [wish.category] if wish.category else artist.poses.categories
    most = math.ceil(wish.count / wish.min_acceptance)
    while len(kept) < wish.count:
        if (drawn >= 3 / wish.min_acceptance and len(kept) < wish.min_acceptance * drawn) or drawn >= most:
            raise DataError(
                f"Only {len(kept)} of {drawn} samples show the pose that was asked for ({len(kept) / drawn:.1%}), less than "
                f"generate.min_acceptance ({wish.min_acceptance:.1%}): train longer or larger, or ask for less."
            )
        numbers = range(drawn, min(drawn + ROUND, most))
        asked = [categories[number % len(categories)] for number in numbers]
        samples = _round(artist, wish, asked, numbers)
        seen = read(samples.pictures)
        share = right_joints(seen, samples.poses, wish.near)
        for i in np.flatnonzero(share >= wish.pck):
            kept.append(Kept(numbers[i], asked[i], samples.poses[i], samples.pictures[i], seen[i], float(share[i])))
        drawn += len(numbers)
        lucky += int((right_joints(seen, np.roll(samples.poses, 1, axis=0), wish.near) >= wish.pck).sum())
        log.info(f"{drawn} drawn, {len(kept)} kept ({len(kept) / drawn:.1%})")
    return Found(kept[: wish.count], kept[wish.count - 1].number + 1, lucky / drawn)


def _round(artist: Artist, wish: Generate, asked: Sequence[str], numbers: range) -> Samples:
    """One round's samples in the order of their numbers; those of one category are drawn together."""
    poses = np.empty((len(asked), 33, 3), np.float32)
    size = artist.pictures.shape[-1]
    pictures = np.empty((len(asked), size, size, 3), np.uint8)
    for category in dict.fromkeys(asked):
        rows = [i for i, name in enumerate(asked) if name == category]
        request = Request(category=category, pose=wish.pose, steps=wish.steps, guidance=wish.guidance, seed=wish.seed)
        samples = artist.samples(request, torch.tensor([numbers[i] for i in rows]))
        poses[rows], pictures[rows] = samples.poses, samples.pictures
    return Samples(poses, pictures)


def run(params: Params, root: Path) -> None:
    """Generate what `params.generate` asks for with registered models.

    Raises UserError if there is no such model or what is asked for is impossible, DataError if too few samples are accepted.
    """
    wish = params.generate
    try:
        Request(category=wish.category, pose=wish.pose)
    except ValidationError as error:
        raise UserError(f"params.yaml: generate: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error
    store = Store(params.tracking, root)
    folders = [model_registry.fetch(store, root, model, wish.alias) for model in paths.MODELS]
    artist = Artist(*folders)
    if wish.category is not None and wish.category not in artist.poses.categories:
        known = ", ".join(artist.poses.categories)
        raise UserError(f"params.yaml: generate.category: the models know {known}, not {wish.category!r}.")
    workers = params.extract.workers or machine.cores()
    confidence = params.extract.min_confidence
    read = partial(
        pose_accuracy.read_poses, model=root / params.extract.model, min_confidence=confidence, workers=workers
    )
    found = sample(artist, wish, read)
    origin = {"categories": artist.poses.categories, "models": [folder.name for folder in folders]}
    write(root / paths.GENERATED, found, wish, artist.pictures.margin, origin)
    rate = f"acceptance {found.acceptance:.1%}, by chance {found.by_chance:.1%}"
    log.info(f"{len(found.kept)} samples in {root / paths.GENERATED}, of {found.drawn} drawn: {rate}")


def write(folder: Path, found: Found, wish: Generate, margin: float, about: dict[str, Any]) -> None:
    """Write the samples as shards, as a COCO folder, and as a picture to look at."""
    kept = found.kept
    keys = [f"{SPLIT}-{wish.seed}-{one.number:06d}" for one in kept]
    metas = [
        {"category": one.category, "seed": wish.seed, "number": one.number, "guidance": wish.guidance, "pck": one.pck}
        for one in kept
    ]
    members = [
        {
            "png": encode_png(one.picture),
            "pose.npy": shards.encode_pose(one.pose),
            "json": shards.encode_json(meta),
        }
        for one, meta in zip(kept, metas, strict=True)
    ]
    counts = {
        "asked": wish.count,
        "drawn": found.drawn,
        "kept": len(kept),
        "acceptance": found.acceptance,
        "acceptance_by_chance": found.by_chance,
        "categories": dict(Counter(one.category for one in kept)),
    }
    tiles = [
        np.concatenate(
            [drawing.draw_pose(one.pose), drawing.enlarge(one.picture, 96), drawing.draw_pose(one.read)], axis=1
        )
        for one in kept[:SHOWN]
    ]
    captions = [f"{one.category}: {one.pck:.0%} of the joints" for one in kept[:SHOWN]]
    with files.new_folder(folder) as temporary:
        written = temporary / "shards"
        shards.write(written, {SPLIT: zip(keys, members, strict=True)}, 1000, about)
        for path in written.iterdir():
            path.rename(temporary / path.name)
        written.rmdir()
        for key, sample_members in zip(keys, members, strict=True):
            files.write_bytes(temporary / f"images/{key}.png", sample_members["png"])
        size = kept[0].picture.shape[0]
        keypoints = places(np.stack([one.pose for one in kept]), margin) * size
        document = coco.document([f"{key}.png" for key in keys], keypoints, size, metas)
        files.write_json(temporary / "coco.json", document)
        files.write_json(temporary / "generated.json", counts)
        drawing.save_png(temporary / paths.GRID, drawing.sheet(tiles, 4, captions))
