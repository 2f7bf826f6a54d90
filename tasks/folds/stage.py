"""`contrapposto train MODEL --folds K`: train on everything, for as long as short trainings on parts of it say is safe.

Nothing is set aside for validation. All examples, whatever their split, are dealt into K folds by group. 2 K short trainings,
each without a fold or on a fold alone, show when the held-out loss turns and when the loss gap alarms; `onset` predicts from
them when that happens with all examples. The model is then trained on everything up to a safe fraction of the onset, and
judged. It leaves

    artifacts/<model>_all/    the model of everything, as `train` leaves its own
    samples/<model>_all/      its samples
    reports/folds/<model>/    folds.json with every number, folds.html with curves, prediction and certificates

Nothing else is touched: the splits, and the models, samples and reports of the pipeline, stay as they are.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.common.files import new_folder, write_bytes, write_json
from tasks.config.params import Params
from tasks.dataset.dataset_table import SPLITS
from tasks.dataset.shards import ShardDataset
from tasks.folds import judging, page
from tasks.folds.dealing import deal
from tasks.folds.judging import Judged
from tasks.folds.onset import Curve, Prediction, predict, safe_length
from tasks.folds.trainings import Everything, name_of, short, whole
from tasks.models import modality
from tasks.models.conditioning import AnyModel
from tasks.train import launch

FEWEST, MOST = 3, 10  # folds; with two, trainings without a fold and on one would be equally large
JSON, PAGE, CLOSEST = "folds.json", "folds.html", "closest.png"

log = logging.getLogger(__name__)


def run(params: Params, root: Path, model: str, folds: str) -> None:
    """Train on folds, predict, train on everything, judge, and write the page. Killed and run again, it resumes.

    Raises UserError for a model or number of folds that this is not for, DataError if there are too few examples.
    """
    count = _count(folds)
    config = _config(params, model)
    judging.sampling_of(params, model)
    data = everything(params, root, model, count)
    with launch.device() as device:
        large, small = (
            [short(params, root, model, config, data, fold, alone, device) for fold in range(count)]
            for alone in (False, True)
        )
        predictions = {kind: predict(kind, large, small, len(data.dataset)) for kind in ("turn", "alarm")}
        length = safe_length(predictions[params.folds.until], params.folds.safe_fraction, config.images)
        log.info(f"{model}: {sentence(predictions, params.folds.until, length, config.images)}")
        folder = whole(params, root, model, config, data, length, device)
    with new_folder(root / paths.FOLDS / model) as reports:
        tests = count + 1
        judged = [judging.judge_fold(params, root, model, data, fold, tests) for fold in range(count)]
        judged.append(judging.judge_whole(params, root, model, data, folder, tests, reports / CLOSEST))
        report = _report(params, model, config, data, large, small, predictions, length, judged)
        write_json(reports / JSON, report)
        write_bytes(reports / PAGE, page.render(root, model, report, large, small, predictions, reports).encode())
    log.info(f"{model}: {report['verdict']}. {root / paths.FOLDS / model / PAGE}")


def _count(folds: str) -> int:
    if not folds.isdecimal() or not FEWEST <= int(folds) <= MOST:
        raise UserError(f"--folds must be a number from {FEWEST} to {MOST}, got {folds}.")
    return int(folds)


def _config(params: Params, model: str) -> AnyModel:
    if model not in paths.MODELS:
        raise UserError(f"--folds is for {' and '.join(paths.MODELS)}, not for {model}.")
    config = modality.config_of(params, model)
    if config.start is not None:
        raise UserError(f"With --folds, {model}.start must be null: those weights may have seen the folds already.")
    return config


def everything(params: Params, root: Path, model: str, folds: int) -> Everything:
    """All examples of the model, dealt into folds. Raises DataError if there are too few."""
    dataset = ShardDataset(root / paths.SHARDS, *SPLITS)
    if model == "pictures":
        dataset = dataset.pictured()
    if not len(dataset):
        raise DataError(f"There is nothing to train {model} on.")
    groups = [str(meta["group"]) for meta in dataset.metas()]
    return Everything(dataset, deal(groups, folds, params.folds.seed), groups, dataset.categories())


def sentence(predictions: dict[str, Prediction], until: str, length: int, planned: int) -> str:
    """What was predicted and what follows, in words."""
    words = {"turn": "The held-out loss turns", "alarm": "The loss gap alarms"}
    parts = []
    for kind, one in predictions.items():
        if one.images is None:
            parts.append(f"{words[kind]} in none of the short trainings.")
        else:
            later = " or later" if one.bound else ""
            parts.append(f"{words[kind]} at image {round(one.images):,}{later} with all examples, it is predicted.")
    if length == planned:
        parts.append(f"So everything is trained on as long as planned, for {length:,} images.")
    else:
        onset = {"turn": "the turn", "alarm": "the alarm"}[until]
        parts.append(f"So everything is trained on for {length:,} images, a safe fraction of {onset}, not {planned:,}.")
    return " ".join(parts)


def _report(
    params: Params,
    model: str,
    config: AnyModel,
    data: Everything,
    large: Sequence[Curve],
    small: Sequence[Curve],
    predictions: dict[str, Prediction],
    length: int,
    judged: Sequence[Judged],
) -> dict[str, Any]:
    count = len(large)
    trainings = [
        {"training": name_of(model, count, fold, alone), **asdict(curve), "turn": curve.turn, "alarm": curve.alarm}
        for alone, curves in ((False, large), (True, small))
        for fold, curve in enumerate(curves)
    ]
    bounds = [one.metrics["share_bound"] for one in judged if "share_bound" in one.metrics]
    return {
        "model": model,
        "examples": len(data.dataset),
        "groups": len(set(data.groups)),
        "folds": [int(size) for size in np.bincount(data.fold)],
        "settings": params.folds.model_dump(),
        "planned": config.images,
        "images": length,
        "sentence": sentence(predictions, params.folds.until, length, config.images),
        "predictions": {kind: asdict(one) for kind, one in predictions.items()},
        "trainings": trainings,
        "verdict": judging.overall(judged).value,
        "largest_bound": max(bounds, default=math.nan) if bounds else None,
        "certificates": [{**asdict(one), "verdict": one.verdict.value} for one in judged],
    }
