"""Stage `memorization`: did the models copy their training data? Writes reports/memorization/.

The pose model is tested in pose space, the picture model in pixels and edges. What the picture model does with poses is
reported apart as pose reuse: it is asked for given poses, so that reusing one is not copying a picture.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tasks import memorization_figures as figures
from tasks.certificate import Certificate, Items, certify
from tasks.control import planted_pictures, planted_poses
from tasks.copy_test import Verdict
from tasks.errors import DataError
from tasks.params import Params
from tasks.shards import ShardDataset
from tasks.splits import Split, group_numbers, load_splits
from tasks.views import PICTURE_BANKS, POSE_BANKS, SIDE

LISTED = 50  # samples written with their p-values, most suspicious first
SHOWN = 6  # rows of the closest-pairs figure


def _top_list(certificate: Certificate, keys: list[str], train: Split) -> list[dict[str, Any]]:
    """The most suspicious samples: p-value, ratio, distances, view, and the keys of their nearest training items."""
    rows = []
    for i in np.argsort(certificate.sample_p, kind="stable")[:LISTED]:
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


def _too_few(what: str, reason: str) -> dict[str, Any]:
    sentence = f"Nothing can be said about copied {what}: {reason}"
    return {"verdict": Verdict.TOO_FEW.value, "sentence": sentence, "metrics": {}, "samples": []}


def _entry(certificate: Certificate, keys: list[str], train: Split) -> dict[str, Any]:
    return {
        "verdict": certificate.verdict.value,
        "sentence": certificate.sentence,
        "metrics": certificate.metrics(),
        "samples": _top_list(certificate, keys, train),
    }


def run(params: Params, root: Path) -> None:
    """Certify the samples of both models against data/shards; writes memorization.json and figures.

    Raises DataError if shards or samples are missing. Too little data is a verdict (TOO-FEW), not an error.
    """
    train, heldout = load_splits(root)
    train_group, heldout_group = group_numbers(train, heldout)
    settings = {
        "level": params.memorization.level,
        "false_discovery": params.memorization.false_discovery,
        "planted": params.memorization.planted,
    }
    folder = root / "reports/memorization"
    temporary = folder.with_name("memorization.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)

    train_poses = Items(train.poses(), train_group)
    heldout_poses = Items(heldout.poses(), heldout_group)
    models: dict[str, Any] = {}

    poses = ShardDataset(root / "samples/poses", "samples")
    pictures = ShardDataset(root / "samples/pictures", "samples")
    drawn_pictures = pictures.pictures(SIDE).astype(np.float32) / 255
    for name, what, banks, keys, data, known, unseen, plant in (
        ("poses", "poses", POSE_BANKS, poses.keys, poses.pose(), train_poses, heldout_poses, planted_poses),
        (
            "pictures",
            "pictures",
            PICTURE_BANKS,
            pictures.keys,
            drawn_pictures,
            Items(train.pictures(), train_group),
            Items(heldout.pictures(), heldout_group),
            planted_pictures,
        ),
        (
            "pose_reuse",
            "poses asked of the picture model",
            POSE_BANKS,
            pictures.keys,
            pictures.pose(),
            train_poses,
            heldout_poses,
            planted_poses,
        ),
    ):
        if not len(data) or not len(unseen):
            models[name] = _too_few(what, "there are no samples." if not len(data) else "nothing is held out.")
            continue
        try:
            certificate = certify(what, banks, data, known, unseen, plant, np.random.default_rng(0), **settings)
        except DataError as error:
            models[name] = _too_few(what, str(error))
            continue
        models[name] = _entry(certificate, keys, train)
        figures.closest_pairs(certificate, data, known.data, SHOWN, temporary / f"{name}_closest.png")
        figures.ratio_tails(certificate, temporary / f"{name}_ratios.png")

    report = {
        "verdicts": {name: entry["verdict"] for name, entry in models.items()},
        "metrics": {
            f"{name}.{key}": value for name, entry in models.items() for key, value in entry["metrics"].items()
        },
        "models": models,
    }
    text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False)
    (temporary / "memorization.json").write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
