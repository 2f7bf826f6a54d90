"""Stage `memorization`: did the models copy their training data? Writes reports/memorization/.

The pose model is tested in pose space, the picture model in pixels and edges, with conditions of held-out persons. Two
more answers are no verdict on a model. `train_conditions`: pictures that were asked for with conditions of the training
set, since a model copies most readily what it is asked for (Gu et al. 2023). `pose_reuse`: the poses that people in the
pictures are seen in (read by the stage `pose_accuracy`); the same pose is not yet the same picture.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks import paths
from tasks.common.errors import DataError
from tasks.common.files import new_folder, write_json
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import COMPARISON, SAMPLES, group_numbers, load_splits
from tasks.evaluate.memorization import memorization_plots as figures
from tasks.evaluate.memorization.certificate import Certificate, Planter, certify, score_samples
from tasks.evaluate.memorization.copy_score import TooFewItems
from tasks.evaluate.memorization.copy_test import Enough, Verdict
from tasks.evaluate.memorization.invariances import PICTURE_BANKS, POSE_BANKS, SIDE
from tasks.evaluate.memorization.positive_control import planted_pictures, planted_poses
from tasks.evaluate.memorization.reference import Items, Reference, reference

LISTED = 50  # samples in memorization.json; all are in <name>_samples.json
SHOWN = 6  # rows of the closest-pairs figure
REUSED = "poses in pictures"
COMPARED = "pictures of training conditions"


def _rows(certificate: Certificate, keys: list[str], train: ShardDataset) -> list[dict[str, Any]]:
    """All samples, most suspicious first: p-value, ratio, distances, view, and keys of their nearest training items."""
    rows = []
    for i in np.argsort(certificate.sample_p, kind="stable"):
        bank = certificate.best_bank(int(i))
        scores = bank.samples
        rows.append(
            {
                "key": keys[i],
                "p": float(certificate.sample_p[i]),
                "listed": bool(certificate.copies[i]),
                "bank": bank.bank.name,
                "view": bank.bank.views[scores.view[i]].name,
                "ratio": float(scores.ratio[i]),
                "distance": float(scores.first_distance[i]),
                "second_distance": float(scores.second_distance[i]),
                "nearest": train.keys[scores.first[i]],
                "second": train.keys[scores.second[i]],
            }
        )
    return rows


def shown_poses(root: Path) -> tuple[list[str], np.ndarray]:
    """Keys of the pictures in which somebody is seen, and the poses float32 `[n, 33, 3]` that were read in them.

    Raises DataError if the stage `pose_accuracy` has not read them.
    """
    path = root / paths.POSE_ACCURACY / "read.npz"
    if not path.is_file():
        raise DataError(f"{path} does not exist: the pose_accuracy stage writes it.")
    with np.load(path, allow_pickle=False) as read:
        key, pose = read["key"], read["pose"]
    there = np.isfinite(pose).all(axis=(1, 2))
    return [str(name) for name in key[there]], pose[there]


class Question(NamedTuple):
    """Which samples are tested against what: `what` is their name in sentences."""

    name: str
    what: str
    keys: list[str]
    samples: np.ndarray
    train: ShardDataset  # the items of the reference's training set
    reference: Callable[[], Reference]  # may raise TooFewItems
    plant: Planter


def _answer(question: Question, params: Params, folder: Path) -> dict[str, Any]:
    """The report's entry of one question, with its figures in `folder`; too little data is a verdict, too."""
    wanted = params.memorization
    try:
        compared = question.reference()
        certificate = certify(
            question.what,
            score_samples(question.what, question.samples, compared),
            compared,
            question.plant,
            np.random.default_rng(0),
            level=wanted.level,
            false_discovery=wanted.false_discovery,
            planted=wanted.planted,
            needed=Enough(wanted.needed_groups, wanted.needed_heldout_groups, wanted.needed_samples),
        )
    except TooFewItems as error:
        sentence = f"Nothing can be said about copied {question.what}: {error}"
        return {"verdict": Verdict.TOO_FEW.value, "sentence": sentence, "metrics": {}, "samples": []}
    closest = folder / f"{question.name}_closest.png"
    figures.closest_pairs(certificate, question.samples, compared.train.data, SHOWN, closest)
    figures.ratio_tails(certificate, folder / f"{question.name}_ratios.png")
    rows = _rows(certificate, question.keys, question.train)
    write_json(folder / f"{question.name}_samples.json", rows)
    return {
        "verdict": certificate.verdict.value,
        "sentence": certificate.sentence,
        "metrics": certificate.metrics(),
        "samples": rows[:LISTED],
    }


def run(params: Params, root: Path) -> None:
    """Certify the samples of both models against data/shards; writes memorization.json and figures.

    Raises DataError if shards or samples are missing or not finite. Too little data is a verdict (TOO-FEW), not an error.
    """
    train, heldout = load_splits(root)
    seen, unseen = train.pictured(), heldout.pictured()
    poses = ShardDataset(paths.sample_folder(root, "poses"), SAMPLES)
    pictures, comparison = (ShardDataset(paths.sample_folder(root, "pictures"), name) for name in (SAMPLES, COMPARISON))
    # At the samples' own size if that is smaller: detail that a sample cannot have must not count as a difference.
    side = min(SIDE, pictures.picture(0).shape[0]) if len(pictures) else SIDE

    @cache
    def pose_reference() -> Reference:
        groups = group_numbers(train, heldout)
        return reference(POSE_BANKS, Items(train.poses(), groups[0]), Items(heldout.poses(), groups[1]))

    @cache
    def picture_reference() -> Reference:
        groups = group_numbers(seen, unseen)
        return reference(
            PICTURE_BANKS, Items(seen.pictures_float(side), groups[0]), Items(unseen.pictures_float(side), groups[1])
        )

    def shown(dataset: ShardDataset) -> np.ndarray:
        return dataset.pictures_float(side)

    questions = [
        Question("poses", "poses", poses.keys, poses.poses(), train, pose_reference, planted_poses),
        Question("pictures", "pictures", pictures.keys, shown(pictures), seen, picture_reference, planted_pictures),
        Question("pose_reuse", REUSED, *shown_poses(root), train, pose_reference, planted_poses),
    ]
    if len(comparison):
        drawn = shown(comparison)
        questions.append(
            Question("train_conditions", COMPARED, comparison.keys, drawn, seen, picture_reference, planted_pictures)
        )
    with new_folder(root / paths.MEMORIZATION) as folder:
        models = {question.name: _answer(question, params, folder) for question in questions}
        metrics = {f"{name}.{key}": value for name, entry in models.items() for key, value in entry["metrics"].items()}
        verdicts = {name: entry["verdict"] for name, entry in models.items()}
        write_json(folder / "memorization.json", {"verdicts": verdicts, "metrics": metrics, "models": models})
