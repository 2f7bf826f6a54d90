"""Stage `memorization`: did the models copy their training data? Writes reports/memorization/.

The pose model is tested in pose space, the picture model in pixels and edges. What the picture model does with poses is
reported apart as pose reuse: it is asked for given poses, so that reusing one is not copying a picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tasks.copies import memorization_figures as figures
from tasks.copies.certificate import Certificate, Items, Planter, certify
from tasks.copies.control import planted_pictures, planted_poses
from tasks.copies.copy_score import TooFewItems
from tasks.copies.copy_test import Verdict
from tasks.copies.views import PICTURE_BANKS, POSE_BANKS, SIDE, Bank
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import Split, group_numbers, load_splits
from tasks.files import new_folder, write_json
from tasks.params import Params

LISTED = 50  # samples in memorization.json; all are in <name>_samples.json
SHOWN = 6  # rows of the closest-pairs figure
REUSED = "poses given to the picture model"


def _rows(certificate: Certificate, keys: list[str], train: Split) -> list[dict[str, Any]]:
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


class Question(NamedTuple):
    """Which samples are tested against what: `what` is their name in sentences."""

    name: str
    what: str
    banks: tuple[Bank, ...]
    keys: list[str]
    samples: np.ndarray
    train: Items
    heldout: Items
    plant: Planter


def _answer(question: Question, params: Params, train: Split, folder: Path) -> dict[str, Any]:
    """The report's entry of one question, with its figures in `folder`; too little data is a verdict, too."""
    try:
        certificate = certify(
            question.what,
            question.banks,
            question.samples,
            question.train,
            question.heldout,
            question.plant,
            np.random.default_rng(0),
            level=params.memorization.level,
            false_discovery=params.memorization.false_discovery,
            planted=params.memorization.planted,
        )
    except TooFewItems as error:
        sentence = f"Nothing can be said about copied {question.what}: {error}"
        return {"verdict": Verdict.TOO_FEW.value, "sentence": sentence, "metrics": {}, "samples": []}
    closest = folder / f"{question.name}_closest.png"
    figures.closest_pairs(certificate, question.samples, question.train.data, SHOWN, closest)
    figures.ratio_tails(certificate, folder / f"{question.name}_ratios.png")
    rows = _rows(certificate, question.keys, train)
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
    train_group, heldout_group = group_numbers(train, heldout)
    train_poses = Items(train.poses(), train_group)
    heldout_poses = Items(heldout.poses(), heldout_group)
    poses = ShardDataset(root / "samples/poses", "samples")
    pictures = ShardDataset(root / "samples/pictures", "samples")
    # At the samples' own size if that is smaller: detail that a sample cannot have must not count as a difference.
    side = min(SIDE, pictures.picture(0).shape[0]) if len(pictures) else SIDE
    drawn = pictures.pictures(side).astype(np.float32) / 255
    train_pictures = Items(train.pictures(side), train_group)
    heldout_pictures = Items(heldout.pictures(side), heldout_group)
    asked = pictures.pose()
    questions = (
        Question("poses", "poses", POSE_BANKS, poses.keys, poses.pose(), train_poses, heldout_poses, planted_poses),
        Question(
            "pictures",
            "pictures",
            PICTURE_BANKS,
            pictures.keys,
            drawn,
            train_pictures,
            heldout_pictures,
            planted_pictures,
        ),
        Question("pose_reuse", REUSED, POSE_BANKS, pictures.keys, asked, train_poses, heldout_poses, planted_poses),
    )
    with new_folder(root / "reports/memorization") as folder:
        models = {question.name: _answer(question, params, train, folder) for question in questions}
        metrics = {f"{name}.{key}": value for name, entry in models.items() for key, value in entry["metrics"].items()}
        verdicts = {name: entry["verdict"] for name, entry in models.items()}
        write_json(folder / "memorization.json", {"verdicts": verdicts, "metrics": metrics, "models": models})
