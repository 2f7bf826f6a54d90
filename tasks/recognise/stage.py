"""Stage `train_recogniser`: classifiers of persons, trained on the dataset's training split and judged on held-out people.

    artifacts/recogniser/model.safetensors    the recogniser (see `recogniser`); absent if `recognition.train` is false
    artifacts/recogniser/trained_on.json      the samples it was trained on, see `lineage`
    reports/recognition/recognition.json      flat metrics of each view, its confusion matrix, and why one is absent
    reports/recognition/VIEW.png              the confusion matrix: rows are labels, columns what was said

Metrics of a view, all on held-out people:

    accuracy, accuracy_low, accuracy_high     share of persons whose most likely category is right, with its 95 % interval
    answered, accuracy_answered               share of persons whose category is named, and how many of these names are right
    rejected                                  share called unknown; `false_rejection_stated` is what was promised
    calibration_error                         expected calibration error, in ten bins
    calibration_error_floor                   what a perfectly calibrated classifier would have with so few people
    calibration_error_raw                     without temperature scaling
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import group_numbers, load_splits
from tasks.metrics import calibration
from tasks.plots import confusion
from tasks.recognise import features, recogniser
from tasks.recognise.recogniser import Answers, Recogniser, View
from tasks.registry import lineage

NEEDED_GROUPS = 20  # of training data; with fewer nothing can be calibrated

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Examples:
    """Persons as one view sees them: features `[n, 2, d]`, labels `[n]`, groups `[n]`."""

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def seen(dataset: ShardDataset, view: str) -> np.ndarray:
    """The features `[n, 2, d]` of a dataset's persons in a view."""
    if view == "landmarks":
        return features.of_poses(dataset.poses())
    return features.of_pictures(dataset.pictures_uint8(features.SIDE))


def labels_of(dataset: ShardDataset, categories: list[str]) -> np.ndarray:
    """The number of each person's category, int64 `[n]`."""
    numbers = {name: i for i, name in enumerate(categories)}
    return np.array([numbers[str(meta["category"])] for meta in dataset.metas()], np.int64)


def run(params: Params, root: Path) -> None:
    """Train and judge the recogniser. Raises DataError if the shards are missing."""
    model, report = root / paths.RECOGNISER, root / paths.RECOGNITION
    splits = load_splits(root)
    categories: list[str] = splits[0].about["categories"]
    views: dict[str, View] = {}
    metrics: dict[str, float] = {}
    confusions: dict[str, list[list[int]]] = {}
    absent: dict[str, str] = {}
    with files.new_folder(model) as artifacts, files.new_folder(report) as folder:
        for view in recogniser.VIEWS:
            reason = "recognition.train is false." if not params.recognition.train else _why_not(*splits, view)
            if reason is not None:
                absent[view] = reason
                continue
            train, held_out = (_with_pictures(split, view) for split in splits)
            groups, _ = group_numbers(train, held_out)
            labels = labels_of(train, categories)
            views[view] = recogniser.fit(seen(train, view), labels, groups, len(categories), params.recognition)
            answers = views[view].answers(seen(held_out, view), params.recognition.min_confidence)
            truth = labels_of(held_out, categories)
            metrics |= {f"{view}.{key}": value for key, value in judge(answers, truth, views[view]).items()}
            metrics[f"{view}.false_rejection_stated"] = params.recognition.false_rejection
            confusions[view] = confusion_matrix(answers, truth, len(categories)).tolist()
            confusion.draw(folder / f"{view}.png", np.array(confusions[view]), categories, [*categories, *_SILENT])
            log.info(f"recognised by {view}: {metrics[f'{view}.accuracy']:.1%} of the held-out people")
        if views:
            margin = float(splits[0].about["margin"])
            trained = Recogniser(categories, margin, params.recognition.min_confidence, views)
            recogniser.save(artifacts / paths.MODEL_FILE, trained, {})
            files.write_json(artifacts / lineage.FILE, lineage.trained_on(splits[0], None))
        about: dict[str, Any] = {"categories": categories, "metrics": metrics, "confusion": confusions}
        files.write_json(folder / "recognition.json", {**about, "absent": absent})


_SILENT = (recogniser.State.UNSURE.value, recogniser.State.UNKNOWN.value)


def _with_pictures(split: ShardDataset, view: str) -> ShardDataset:
    return split.pictured() if view == "pixels" else split


def _why_not(train: ShardDataset, held_out: ShardDataset, view: str) -> str | None:
    """Why a view cannot be trained or judged, as a sentence; None if it can."""
    train, held_out = _with_pictures(train, view), _with_pictures(held_out, view)
    if len(set(train.categories())) < 2:
        return "There are fewer than two categories."
    if len({str(meta["group"]) for meta in train.metas()}) < NEEDED_GROUPS:
        return f"There are fewer than {NEEDED_GROUPS} groups of training data."
    return None if len(held_out) else "There are no held-out people."


def judge(answers: Answers, truth: np.ndarray, view: View) -> dict[str, float]:
    """The metrics of the module's docstring, for persons with these labels `[n]`."""
    right, known = answers.category == truth, answers.known
    low, high = wilson(int(right.sum()), len(right))
    raw = calibration.softmax(answers.logits * view.temperature).max(axis=1)

    def error(confidence: np.ndarray) -> float:
        return calibration.expected_calibration_error(confidence, right)

    return {
        "people": float(len(truth)),
        "accuracy": float(right.mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "answered": float(known.mean()),
        **({"accuracy_answered": float(right[known].mean())} if known.any() else {}),
        "rejected": float((answers.distance > answers.radius).mean()),
        "calibration_error": error(answers.confidence),
        "calibration_error_floor": calibration.calibration_floor(answers.confidence),
        "calibration_error_raw": error(raw),
        "temperature": view.temperature,
    }


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    share, square = successes / trials, z * z / trials
    middle = (share + square / 2) / (1 + square)
    half = z * np.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return float(middle - half), float(middle + half)


def confusion_matrix(answers: Answers, truth: np.ndarray, classes: int) -> np.ndarray:
    """Counts int64 `[k, k + 2]`: labels by what was said; the last two columns are `unsure` and `unknown`."""
    silent = {recogniser.State.UNSURE: classes, recogniser.State.UNKNOWN: classes + 1}
    said = [silent.get(state, category) for state, category in zip(answers.states, answers.category, strict=True)]
    counts = np.zeros((classes, classes + 2), np.int64)
    np.add.at(counts, (truth, said), 1)
    return counts
