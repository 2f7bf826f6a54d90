"""Stage `memorization`: did the models copy their training data? Writes reports/memorization/.

The pose model is tested in pose space, the picture model in pixels and edges; its pictures were generated for conditions of
held-out people. Two more questions give no verdict on a model:

    train_conditions    pictures that were generated for conditions of the training set, since a model copies most readily
                        what it is asked for (Gu et al. 2023)
    pose_reuse          the poses of the people in the generated pictures, as read by the stage `pose_accuracy`; a known
                        pose does not make a picture a copy
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tasks import paths
from tasks.common.files import new_folder, write_json
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset, resized
from tasks.dataset.splits import COMPARISON, SAMPLES, group_numbers, load_splits
from tasks.evaluate import stored_poses
from tasks.evaluate.memorization import memorization_plots, positive_control
from tasks.evaluate.memorization.certificate import Certificate, certificate_searches, certify_samples
from tasks.evaluate.memorization.copy_score import TooFewItems
from tasks.evaluate.memorization.copy_test import Verdict
from tasks.evaluate.memorization.invariances import PICTURE_BANKS, PICTURE_SIDE, POSE_BANKS
from tasks.evaluate.memorization.positive_control import Planter
from tasks.evaluate.memorization.reference import Items, Reference, make_reference
from tasks.evaluate.memorization.score_blocks import Search, prepared
from tasks.evaluate.memorization.scorers import scorer

LISTED = 50  # samples in memorization.json; all are in <name>_samples.json
SHOWN = 6  # rows of the closest-pairs figure


@dataclass(frozen=True)
class SampleRow:
    """One sample in the report, with the keys of its nearest training items."""

    key: str
    p: float
    listed: bool  # as a copy, at the false-discovery rate
    bank: str
    view: str  # the transformation under which the sample was nearest
    ratio: float
    distance: float
    second_distance: float
    nearest: str
    second: str


@dataclass(frozen=True)
class PowerRow:
    """How many planted copies of one disguise were recognised, with the exact 95% interval of the share."""

    disguise: str
    planted: int
    found: int
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """The report's entry for one question."""

    verdict: Verdict
    sentence: str
    metrics: dict[str, float]
    power: list[PowerRow]
    samples: list[SampleRow]  # the most suspicious first


class Question(NamedTuple):
    """Which samples are tested against what."""

    name: str
    what: str  # the samples' name in sentences
    keys: Sequence[str]
    samples: np.ndarray
    train: ShardDataset  # the items of the reference's training set
    reference: Callable[[], Reference]  # may raise TooFewItems
    plant: Callable[[], Planter]


def _rows(certificate: Certificate, keys: Sequence[str], train: ShardDataset) -> list[SampleRow]:
    """All samples, the most suspicious first."""
    rows = []
    for i in np.argsort(certificate.sample_p, kind="stable"):
        result = certificate.best_bank(int(i))
        scores = result.samples
        rows.append(
            SampleRow(
                key=keys[i],
                p=float(certificate.sample_p[i]),
                listed=bool(certificate.copies[i]),
                bank=result.bank.name,
                view=result.bank.invariances[scores.invariance[i]].name,
                ratio=float(scores.ratio[i]),
                distance=float(scores.first_distance[i]),
                second_distance=float(scores.second_distance[i]),
                nearest=train.keys[scores.first[i]],
                second=train.keys[scores.second[i]],
            )
        )
    return rows


def poses_in_pictures(root: Path) -> tuple[list[str], np.ndarray]:
    """Keys of the pictures in which a person was found, and the poses float32 `[n, 33, 3]` that were read from them.

    Raises DataError if the stage `pose_accuracy` has not run.
    """
    keys, poses = stored_poses.read(root)
    found = np.isfinite(poses).all(axis=(1, 2))
    return [key for key, kept in zip(keys, found, strict=True) if kept], poses[found]


def _answer(question: Question, params: Params, folder: Path) -> Answer:
    """The answer to one question; its figures go to `folder`. Too little data is a verdict, too."""
    try:
        reference = question.reference()
        certificate = certify_samples(params.memorization, question.what, question.samples, reference, question.plant())
    except TooFewItems as error:
        return Answer(Verdict.TOO_FEW, f"Nothing can be said about copied {question.what}: {error}", {}, [], [])
    closest = folder / f"{question.name}_closest.png"
    memorization_plots.closest_pairs(certificate, question.samples, reference.train.data, SHOWN, closest)
    memorization_plots.ratio_tails(certificate, folder / f"{question.name}_ratios.png")
    rows = _rows(certificate, question.keys, question.train)
    write_json(folder / f"{question.name}_samples.json", [asdict(row) for row in rows])
    return Answer(certificate.verdict, certificate.sentence, certificate.metrics(), _power(certificate), rows[:LISTED])


def _power(certificate: Certificate) -> list[PowerRow]:
    return [
        PowerRow(disguise, power.planted, power.found, *power.interval())
        for disguise, power in certificate.disguises.items()
    ]


def run(params: Params, root: Path) -> None:
    """Certify the samples of both models against data/shards; writes memorization.json and figures.

    Raises DataError if shards or samples are missing or not finite. Too little data is a verdict (TOO-FEW), not an error.
    """
    train, heldout = load_splits(root)
    train_pictures, heldout_pictures = train.pictured(), heldout.pictured()
    poses = ShardDataset(paths.sample_folder(root, "poses"), SAMPLES)
    pictures, comparison = (ShardDataset(paths.sample_folder(root, "pictures"), name) for name in (SAMPLES, COMPARISON))
    # At the samples' own size if that is smaller: detail that a sample cannot have must not count as a difference.
    side = min(PICTURE_SIDE, pictures.picture(0).shape[0]) if len(pictures) else PICTURE_SIDE

    @cache
    def pose_items() -> tuple[Items, Items]:
        groups = group_numbers(train, heldout)
        return Items(train.poses(), groups[0]), Items(heldout.poses(), groups[1])

    @cache
    def picture_items() -> tuple[Items, Items]:
        groups = group_numbers(train_pictures, heldout_pictures)
        return (
            Items(train_pictures.pictures_uint8(side), groups[0]),
            Items(heldout_pictures.pictures_uint8(side), groups[1]),
        )

    @cache
    def pose_reference() -> Reference:
        return make_reference(POSE_BANKS, *pose_items())

    @cache
    def picture_reference() -> Reference:
        return make_reference(PICTURE_BANKS, *picture_items())

    def plant_poses() -> Planter:
        return positive_control.poses(train.poses())

    def plant_pictures() -> Planter:
        return positive_control.pictures(len(train_pictures), train_pictures.picture, partial(resized, side))

    shown = pictures.pictures_uint8(side)
    questions = [
        Question("poses", "poses", poses.keys, poses.poses(), train, pose_reference, plant_poses),
        Question("pictures", "pictures", pictures.keys, shown, train_pictures, picture_reference, plant_pictures),
        Question("pose_reuse", "poses in pictures", *poses_in_pictures(root), train, pose_reference, plant_poses),
    ]
    if len(comparison):
        questions.append(
            Question(
                "train_conditions",
                "pictures of training conditions",
                comparison.keys,
                comparison.pictures_uint8(side),
                train_pictures,
                picture_reference,
                plant_pictures,
            )
        )

    def searches() -> list[Search]:
        """Nearly all searches of the stage, for which other machines may be of help."""
        wanted = []
        for items, banks, planted, asked in (
            (pose_items, POSE_BANKS, plant_poses, [questions[0], questions[2]]),
            (picture_items, PICTURE_BANKS, plant_pictures, [questions[1], *questions[3:]]),
        ):
            wanted += certificate_searches(
                banks, *items(), planted, [question.samples for question in asked], params.memorization.planted
            )
        return wanted

    with prepared(searches, scorer), new_folder(root / paths.MEMORIZATION) as folder:
        answers = {question.name: _answer(question, params, folder) for question in questions}
        report = {
            "verdicts": {name: answer.verdict.value for name, answer in answers.items()},
            "metrics": {
                f"{name}.{key}": value for name, answer in answers.items() for key, value in answer.metrics.items()
            },
            "models": {name: asdict(answer) for name, answer in answers.items()},
        }
        write_json(folder / "memorization.json", report)
