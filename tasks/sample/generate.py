"""Command `generate`: pictures of people in requested poses, of which only those that show the pose are kept.

With `generate.kind: motion` it makes motion instead, see `generate_motion`, and with `video` clips of pictures, see
`generate_video`.

Samples are drawn in rounds. MediaPipe reads the pose in every picture, and pictures in which enough joints are where the
request wants them are kept (rejection by re-estimation). `generated/` holds:

    generated-000000.tar, index.json    shards: picture, pose, and its category, seed, number and share of correct joints
    coco.json, images/                  the same for tools that train pose estimators
    generated.json                      how many samples were drawn and kept, and how many would be kept by chance
    grid.png                            the requested pose, the picture, the pose read from it
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from tasks import paths
from tasks.common import files, machine
from tasks.common.arrays import Arrays
from tasks.common.blocks import computed
from tasks.common.errors import DataError, UserError
from tasks.common.images import encode_png
from tasks.config.params import Generate, Params
from tasks.config.sampling import SamplingChoices
from tasks.dataset import shards
from tasks.dataset.pose_map import places
from tasks.evaluate import pose_accuracy
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.plots import drawing
from tasks.recognise import recognise
from tasks.recognise.features import of_poses
from tasks.recognise.recogniser import State
from tasks.registry import model_registry
from tasks.sample import coco, generate_motion, generate_video, generated
from tasks.sample.requests import Artist, Request, Samples

ROUND = 128  # samples per round
SHOWN = 48
Reader = Callable[[np.ndarray], np.ndarray]
# From poses read `[n, 33, 3]` (NaN where nobody was found) and categories to which are recognised as theirs, bool `[n]`.
Judge = Callable[[np.ndarray, Sequence[str]], np.ndarray]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """A sample that shows the requested pose."""

    number: int
    category: str
    pose: np.ndarray  # [33, 3], requested
    picture: np.ndarray  # uint8 [s, s, 3]
    read: np.ndarray  # [33, 3], read from the picture
    pck: float  # share of the limb joints that are correct


@dataclass(frozen=True)
class Accepted:
    """The samples that were kept, of `drawn` samples.

    `by_chance`: the share of these pictures that would be kept if each were compared with the pose requested for another.
    """

    kept: list[Kept]
    drawn: int
    by_chance: float

    @property
    def acceptance(self) -> float:
        """The share of drawn samples that was kept."""
        return len(self.kept) / self.drawn


def right_joints(read: np.ndarray, asked: np.ndarray, near: float) -> np.ndarray:
    """Share of the 12 limb joints within `near` torso lengths in the image plane, `[n]`; 0 where nobody was accepted.

    Depth is ignored, since a picture does not show it. (PCK, Yang & Ramanan 2013, with the torso as the unit.)
    """
    errors = pose_accuracy.joint_errors(read[..., :2], asked[..., :2])
    right: np.ndarray = np.isfinite(errors) & (errors <= near)
    return np.asarray(right.mean(axis=1))


def sample(artist: Artist, settings: Generate, read: Reader, judge: Judge | None = None) -> Accepted:
    """Draw samples until `settings.count` are kept. The rest of the last round is not counted.

    `judge`: a second gate, which samples have to pass as well. A round is a block (see `tasks.common.blocks`).

    Raises DataError when the acceptance is below `settings.min_acceptance`: after 3 / min_acceptance samples (at an acceptance
    of min_acceptance, the probability that none of them is kept is 5 %) and after count / min_acceptance samples.
    """
    kept: list[Kept] = []
    drawn = by_chance = 0
    most = math.ceil(settings.count / settings.min_acceptance)
    rounds = [range(first, min(first + ROUND, most)) for first in range(0, most, ROUND)]

    def needed() -> int:
        """Rounds that are probably needed, at the acceptance so far; at first the fewest that can be."""
        acceptance = max(len(kept) / drawn, settings.min_acceptance) if drawn else 1.0
        return math.ceil((settings.count - len(kept)) / acceptance / ROUND)

    work = [partial(_round, artist, settings, read, judge, numbers) for numbers in rounds]
    for numbers, arrays in zip(rounds, computed(work, "samples", needed), strict=False):
        drawn += len(numbers)
        kept += _kept(arrays, generated.categories(settings, artist.categories, numbers))
        by_chance += int(arrays["by_chance"])
        log.info(f"{drawn} drawn, {len(kept)} kept ({len(kept) / drawn:.1%})")
        if len(kept) >= settings.count:
            break
        if (drawn >= 3 / settings.min_acceptance and len(kept) < settings.min_acceptance * drawn) or drawn >= most:
            raise DataError(
                f"Only {len(kept)} of {drawn} samples show the requested pose ({len(kept) / drawn:.1%}), less than "
                f"generate.min_acceptance ({settings.min_acceptance:.1%}): train longer, train a larger model, or relax "
                "generate.near and generate.pck."
            )
    return Accepted(kept[: settings.count], kept[settings.count - 1].number + 1, by_chance / drawn)


def _round(artist: Artist, settings: Generate, read: Reader, judge: Judge | None, numbers: range) -> Arrays:
    """Draw the samples with these numbers: those that show the requested pose, by their `row` among them.

    `by_chance`: how many would, if each were compared with the pose requested for the one before it.
    """
    asked = generated.categories(settings, artist.categories, numbers)
    samples = _drawn(artist, settings, asked, numbers)
    poses_read = read(samples.pictures)
    share = right_joints(poses_read, samples.poses, settings.near)
    passed = share >= settings.pck
    chance = right_joints(poses_read, np.roll(samples.poses, 1, axis=0), settings.near) >= settings.pck
    if judge is not None:
        passed &= judge(poses_read, asked)
        chance &= judge(poses_read, [*asked[-1:], *asked[:-1]])
    row = np.flatnonzero(passed)
    return {
        "row": row, "number": row + numbers.start, "pose": samples.poses[row], "picture": samples.pictures[row],
        "read": poses_read[row], "pck": share[row], "by_chance": chance.sum(),
    }  # fmt: skip


def _kept(arrays: Arrays, asked: Sequence[str]) -> list[Kept]:
    """The samples of a round that are kept."""
    columns = (arrays[name] for name in ("row", "number", "pose", "picture", "read", "pck"))
    return [
        Kept(int(number), asked[row], pose, picture, read, float(share))
        for row, number, pose, picture, read, share in zip(*columns, strict=True)
    ]


def _drawn(artist: Artist, settings: Generate, asked: Sequence[str], numbers: range) -> Samples:
    """The samples of one round in the order of their numbers; those of one category are drawn together."""
    poses = np.empty((len(asked), 33, 3), np.float32)
    pictures = np.empty((len(asked), artist.size, artist.size, 3), np.uint8)
    for category in dict.fromkeys(asked):
        rows = [i for i, name in enumerate(asked) if name == category]
        request = Request(
            category=category, pose=settings.pose, prompt=settings.prompt, seed=settings.seed,
            **{key: getattr(settings, key) for key in SamplingChoices.model_fields},
        )  # fmt: skip
        samples = artist.samples(request, torch.tensor([numbers[i] for i in rows]))
        poses[rows], pictures[rows] = samples.poses, samples.pictures
    return Samples(poses, pictures)


def run(params: Params, root: Path, *models: str) -> None:
    """Generate samples as `params.generate` says, with registered models.

    `models`: MODEL=SHA256 for each, by default those with `generate.alias`. Raises UserError if there is no such model or the
    request is invalid, DataError if too few samples are kept.
    """
    folders = generated.models(params, root, models)
    if params.generate.kind == "motion":
        generate_motion.run(params, root, folders[paths.MOTION])
    elif params.generate.kind == "video":
        generate_video.run(params, root, folders)
    else:
        _pictures(params, root, folders)


def _pictures(params: Params, root: Path, folders: Mapping[str, Path]) -> None:
    """Generate pictures with the models in these folders. Raises as `run`."""
    settings = params.generate
    try:
        Request(category=settings.category, pose=settings.pose)
    except ValidationError as error:
        raise UserError(f"params.yaml: generate: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error

    def prepare(model: Model, how: SamplingChoices) -> Sampler:
        return model_registry.sampler(params, root, folders[model.name], how, model)

    enlarger = folders.get(paths.UPSCALER)
    artist = Artist(folders["poses"], folders["pictures"], prepare, enlarger, params.sample.upscaler, home=root)
    if settings.category is not None and settings.category not in artist.categories:
        known = ", ".join(artist.categories)
        raise UserError(f"params.yaml: generate.category: the models know {known}, not {settings.category!r}.")
    if settings.prompt is not None and not artist.reads:
        raise UserError("params.yaml: generate.prompt: the pictures know no text.")
    workers = params.extract.workers or machine.cores()
    confidence = params.extract.min_confidence
    judge = _judge(root, artist.categories) if settings.recognised else None
    with pose_accuracy.pose_reader(root / params.extract.model, confidence, workers) as read:
        accepted = sample(artist, settings, read, judge)
    about = {"categories": artist.categories, "models": [folder.name for folder in folders.values()]}
    write(root / paths.GENERATED, accepted, settings, artist.margin, about)
    rate = f"acceptance {accepted.acceptance:.1%}, by chance {accepted.by_chance:.1%}"
    log.info(f"{len(accepted.kept)} samples in {root / paths.GENERATED}, of {accepted.drawn} drawn: {rate}")


def _judge(root: Path, categories: Sequence[str]) -> Judge:
    """Whether the workspace's recogniser names the requested category from the landmarks read.

    Raises UserError if there is no recogniser, or if it does not know all categories of the models.
    """
    trained = recognise.load(root)
    strange = sorted(set(categories) - set(trained.categories))
    if strange:
        raise UserError(f"params.yaml: generate.recognised: the recogniser does not know {', '.join(strange)}.")

    def judge(read: np.ndarray, asked: Sequence[str]) -> np.ndarray:
        recognised = np.zeros(len(read), bool)
        found = np.flatnonzero(np.isfinite(read).all(axis=(1, 2))).tolist()
        if len(found):
            for i, named in zip(found, recognise.named(trained, "landmarks", of_poses(read[found])), strict=True):
                recognised[i] = named.state is State.KNOWN and named.category == asked[i]
        return recognised

    return judge


def write(folder: Path, accepted: Accepted, settings: Generate, margin: float, about: dict[str, Any]) -> None:
    """Write the samples as shards, in COCO's format, and as a picture."""
    kept = accepted.kept
    keys = [generated.key(settings, one.number) for one in kept]
    metas = [
        {
            "category": one.category,
            "seed": settings.seed,
            "number": one.number,
            "sampler": settings.sampler,
            "guidance": settings.guidance_json,
            "pck": one.pck,
        }
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
        "asked": settings.count,
        "drawn": accepted.drawn,
        "kept": len(kept),
        "acceptance": accepted.acceptance,
        "acceptance_by_chance": accepted.by_chance,
        "categories": dict(Counter(one.category for one in kept)),
    }
    tiles = [
        np.concatenate(
            [drawing.draw_pose(one.pose), drawing.enlarge(one.picture, 96), drawing.draw_pose(one.read)], axis=1
        )
        for one in kept[:SHOWN]
    ]
    captions = [f"{one.category}: {one.pck:.0%} of the joints" for one in kept[:SHOWN]]
    with generated.new_folder(folder, zip(keys, members, strict=True), about) as temporary:
        for key, sample_members in zip(keys, members, strict=True):
            files.write_bytes(temporary / f"images/{key}.png", sample_members["png"])
        size = kept[0].picture.shape[0]
        keypoints = places(np.stack([one.pose for one in kept]), margin) * size
        document = coco.document([f"{key}.png" for key in keys], keypoints, size, metas)
        files.write_json(temporary / "coco.json", document)
        files.write_json(temporary / "generated.json", counts)
        drawing.save_png(temporary / paths.GRID, drawing.sheet(tiles, 4, captions))
