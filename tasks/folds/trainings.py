"""The trainings on folds: on all folds but one, on one fold, and at last on everything.

Each is a training like any other: with a state of its own, from which it resumes with the same bits after a kill, and with an
MLflow run. One that has ended is not trained again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tasks import paths
from tasks.common import files
from tasks.config.folds import Folds
from tasks.config.optimisation import Stop
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.folds.onset import Curve, grid
from tasks.models.conditioning import AnyModel
from tasks.train import early_stopping, preparation, stage
from tasks.train.evaluation import Evaluation

EARLIEST = 50  # the first evaluation comes after this part of the training, and not before the warm-up has ended


@dataclass(frozen=True)
class Everything:
    """All examples of a model, whatever their split, and the fold of each."""

    dataset: ShardDataset
    fold: np.ndarray
    groups: list[str]
    categories: list[str]

    def sides(self, fold: int, inside: bool) -> tuple[ShardDataset, ShardDataset]:
        """Training set and held-out examples: one fold and all others, or (`inside` false) the other way round."""
        train, heldout = (np.flatnonzero((self.fold == fold) == chosen).tolist() for chosen in (inside, not inside))
        return self.dataset.take(train), self.dataset.take(heldout)


def name_of(model: str, folds: int, fold: int, alone: bool) -> str:
    """The name of a training, counted from 1: without a fold, or on it alone."""
    return f"{model}_{'only' if alone else 'without'}_fold_{fold + 1}_of_{folds}"


def folder_of(root: Path, model: str, training: str) -> Path:
    """The folder of the model of a short training."""
    return root / paths.FOLD_MODELS / model / training


def short(
    params: Params,
    root: Path,
    model: str,
    config: AnyModel,
    data: Everything,
    fold: int,
    alone: bool,
    device: torch.device,
) -> Curve:
    """Train without a fold, or on it `alone`, until the held-out loss has turned, and return the evaluations.

    The training is as long as the whole one in passes over its examples, if it does not turn before, at a constant learning
    rate. The weights with the lowest held-out loss are its model.
    """
    folds = int(data.fold.max()) + 1
    train, heldout = data.sides(fold, inside=alone)
    settings = params.folds
    shorter = _shortened(config, max(1, round(config.images * len(train) / len(data.dataset))), settings)
    training = name_of(model, folds, fold, alone)
    codec = stage.codec_of(params, root, model, config)
    examples = preparation.load_data(root, model, shorter, device, codec, data.categories, (train, heldout))
    milestones = grid(
        max(shorter.batch, shorter.warmup_images, shorter.images // EARLIEST),
        shorter.images,
        settings.evaluations_ratio,
    )
    loop = stage.assembled(
        params, root, model, shorter, examples, device, training,
        more={"evaluated at images": json.dumps(milestones)}, output=folder_of(root, model, training),
    )  # fmt: skip
    loop.milestones = tuple(milestones)
    preparation.run(loop, examples)
    told = files.read_json(folder_of(root, model, training) / "training.json")
    rows = [Evaluation.from_json(row) for row in told["levels"]]
    return Curve(
        n=len(train),
        images=[row.images for row in rows],
        loss=[early_stopping.relative_loss(told["sigmas"], row.val) for row in rows if row.val is not None],
        alarming=[any(gap.alarming for gap in row.gaps or []) for row in rows],
        patience=settings.patience,
    )


def whole(
    params: Params, root: Path, model: str, config: AnyModel, data: Everything, images: int, device: torch.device
) -> Path:
    """Train on everything for so many images, and return the model's folder."""
    name = paths.on_everything(model)
    part = images / config.images
    final = config.model_copy(update={
        "images": images, "cooldown_images": round(config.cooldown_images * part),
        "warmup_images": min(config.warmup_images, images // 4), "checkpoint_images": min(config.checkpoint_images, images),
        "keep": "last", **_PLAIN,
    })  # fmt: skip
    nothing = data.dataset.take([])
    codec = stage.codec_of(params, root, model, config)
    examples = preparation.load_data(root, model, final, device, codec, data.categories, (data.dataset, nothing))
    output = paths.model_folder(root, name)
    preparation.run(stage.assembled(params, root, model, final, examples, device, name, output=output), examples)
    return output


# One process, and nothing that needs samples or held-out examples.
_PLAIN = {"ranks": 1, "sharded": False, "distance_samples": 0, "stop": Stop()}


def _shortened(config: AnyModel, images: int, settings: Folds) -> AnyModel:
    return config.model_copy(update={
        **_PLAIN, "images": images, "cooldown_images": 0, "warmup_images": min(config.warmup_images, images // 4),
        "checkpoint_images": max(config.batch, images // 4), "keep": "validation_loss", "power_averages": [],
        "stop": Stop(turned=True, patience=settings.patience),
    })  # fmt: skip
