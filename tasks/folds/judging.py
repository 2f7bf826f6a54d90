"""The certificate of a training on folds: no example is lost to it, and yet each is held out once.

The model of each training without a fold, at the lowest of its held-out loss, is judged with that fold held out. There it has
seen each example at least as often as the model of everything, which stops before its own onset. The model of everything is
judged too; nothing is held out of it, so its training examples calibrate the test, and there is no split test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params, Sample
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset, resized
from tasks.dataset.splits import SAMPLES
from tasks.evaluate.memorization import memorization_plots, positive_control
from tasks.evaluate.memorization.certificate import Certificate, certify, score_samples
from tasks.evaluate.memorization.copy_score import TooFewItems
from tasks.evaluate.memorization.copy_test import Enough, Verdict
from tasks.evaluate.memorization.invariances import PICTURE_BANKS, PICTURE_SIDE, POSE_BANKS
from tasks.evaluate.memorization.reference import Items, make_reference
from tasks.folds.trainings import Everything, folder_of, name_of
from tasks.plots import drawing
from tasks.registry import model_registry
from tasks.sample.stage import GRID, Conditions, draw_pictures, draw_poses, picture_samples, pose_samples, resampled

# The first of these that any certificate has is the verdict on all of them.
WORST = (Verdict.COPIES, Verdict.SPLIT_UNRELIABLE, Verdict.LOW_POWER, Verdict.TOO_FEW, Verdict.CLEAN)
CLOSEST = 6  # rows of the figure
TILE = 96  # pixels


@dataclass(frozen=True)
class Judged:
    """The outcome for one model; `training`: its name; `metrics`: of the certificate, {} if there was too little to compare."""

    training: str
    verdict: Verdict
    sentence: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Drawn:
    """Samples: poses `[n, 33, 3]`, or pictures uint8 `[n, size, size, 3]`, and the conditions that they were drawn with."""

    values: np.ndarray
    asked: Conditions


def sampling_of(params: Params, model: str) -> Sample:
    """How the model is sampled. Raises UserError if that is the way of its student."""
    choice: Sample = getattr(params.sample, model)
    if choice.model != model:
        raise UserError(f"With --folds, sample.{model}.model must be {model}, got {choice.model}.")
    return choice


def overall(some: Sequence[Judged]) -> Verdict:
    """The verdict on all models together."""
    found = {one.verdict for one in some}
    return next(verdict for verdict in WORST if verdict in found)


def judge_fold(params: Params, root: Path, model: str, data: Everything, fold: int, tests: int) -> Judged:
    """Judge the model that was trained without a fold, with that fold held out. `tests`: verdicts that share the level."""
    train, heldout = data.sides(fold, inside=False)
    training = name_of(model, int(data.fold.max()) + 1, fold, alone=False)
    drawn = _draw(params, root, model, folder_of(root, model, training), heldout, params.memorization.needed_samples)
    return _judge(params, model, training, drawn.values, train, heldout, data, tests)[0]


def judge_whole(
    params: Params, root: Path, model: str, data: Everything, folder: Path, tests: int, figure: Path
) -> Judged:
    """Sample the model of everything into samples/<name>, and judge it with nothing held out; draws the closest pairs."""
    choice = sampling_of(params, model)
    drawn = _draw(params, root, model, folder, data.dataset, choice.count)
    name = paths.on_everything(model)
    _write(root, model, name, choice, drawn)
    judged, certificate = _judge(params, model, name, drawn.values, data.dataset, data.dataset.take([]), data, tests)
    if certificate is not None:
        samples, items = (_items(model, some, _side(drawn.values)) for some in (drawn.values, data.dataset))
        memorization_plots.closest_pairs(certificate, samples, items, CLOSEST, figure)
    return judged


def _draw(params: Params, root: Path, model: str, folder: Path, source: ShardDataset, count: int) -> Drawn:
    """`count` samples of the model in a folder, with conditions of examples of `source`."""
    choice = sampling_of(params, model)
    trained = model_registry.sampler(params, root, folder, choice)
    asked = Conditions.of(source, resampled(len(source), count, choice.seed))
    if model == "pictures":
        return Drawn(draw_pictures(trained, choice, {SAMPLES: asked})[SAMPLES], asked)
    return Drawn(draw_poses(trained, choice, asked.category), asked)


def _write(root: Path, model: str, name: str, choice: Sample, drawn: Drawn) -> None:
    asked, values = drawn.asked, drawn.values
    if model == "pictures":
        samples = picture_samples(choice, asked, values, SAMPLES)
        tiles = [drawing.smooth(picture, max(TILE, values.shape[1])) for picture in values[: GRID * GRID]]
    else:
        samples = pose_samples(choice, asked.category, values)
        tiles = [drawing.draw_pose(pose) for pose in values[: GRID * GRID]]
    folder = paths.sample_folder(root, name)
    shards.write(folder, {SAMPLES: samples}, choice.count, {"model": model, "trained_on": "everything"})
    drawing.save_png(folder / paths.GRID, drawing.sheet(tiles, GRID, asked.category[: GRID * GRID]))


def _side(values: np.ndarray) -> int:
    return min(PICTURE_SIDE, int(values.shape[1]))


def _items(model: str, some: ShardDataset | np.ndarray, side: int) -> np.ndarray:
    """Samples or examples as the copy test compares them."""
    if isinstance(some, ShardDataset):
        return some.pictures_uint8(side) if model == "pictures" else some.poses()
    return np.stack([resized(side, picture) for picture in some]) if model == "pictures" else some


def _judge(
    params: Params,
    model: str,
    training: str,
    samples: np.ndarray,
    train: ShardDataset,
    heldout: ShardDataset,
    data: Everything,
    tests: int,
) -> tuple[Judged, Certificate | None]:
    settings, side = params.memorization, _side(samples)
    group = dict(zip(data.dataset.keys, np.unique(data.groups, return_inverse=True)[1].tolist(), strict=True))
    known, unseen = (
        Items(_items(model, some, side), np.array([group[key] for key in some.keys], np.int64))
        for some in (train, heldout)
    )
    planter = (
        positive_control.pictures(len(train), train.picture, partial(resized, side))
        if model == "pictures"
        else positive_control.poses(known.data)
    )
    banks = PICTURE_BANKS if model == "pictures" else POSE_BANKS
    needed = settings.needed_heldout_groups if len(heldout) else 0
    try:
        reference = make_reference(banks, known, unseen, without_heldout=not len(heldout))
        certificate = certify(
            model,
            score_samples(model, _items(model, samples, side), reference),
            reference,
            planter,
            np.random.default_rng(0),
            level=settings.level / tests,
            false_discovery=settings.false_discovery,
            planted=settings.planted,
            needed=Enough(settings.needed_groups, needed, settings.needed_samples),
            needed_power=settings.needed_power,
        )
    except TooFewItems as error:
        return Judged(training, Verdict.TOO_FEW, f"Nothing can be said about copied {model}: {error}", {}), None
    return Judged(training, certificate.verdict, certificate.sentence, certificate.metrics()), certificate
