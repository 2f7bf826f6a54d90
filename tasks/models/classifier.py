"""The classifier of noisy examples that guides a model: its network, and the file that a trained one lives in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from diffusion_core.extras.classifier import NoisyClassifier
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.config.classifier import Classifier
from tasks.config.params import Upscaler
from tasks.models.build import network
from tasks.models.modality import Model

PREFIX = "weights."


def build(config: Classifier, model: Model) -> NoisyClassifier:
    """The untrained classifier of the categories of a model, for examples in the units of its network."""
    assert not isinstance(model.config, Upscaler)
    own: dict[str, Any] = {"width": config.width, "depth": config.depth, "heads": config.heads, "seed": config.seed}
    own |= {"preset": None, "dropout": 0.0}
    net = network(model.config.model_copy(update=own), {}, model.shape, classes=len(model.categories))
    return NoisyClassifier(net, model.recipe.sd, model.recipe.c_noise)


def save(folder: Path, classifier: NoisyClassifier, config: Classifier, model: Model, meta: dict[str, Any]) -> None:
    """Write the classifier of a model's noisy examples, and its units, into a folder."""
    tensors = {f"{PREFIX}{name}": value for name, value in classifier.state_dict().items()}
    tensors |= {"mean": model.codec.mean, "scale": model.codec.scale}
    about = {"classifies": model.name, "config": config.model_dump(), "categories": model.categories, **meta}
    checkpoint.save(folder / paths.MODEL_FILE, tensors, about)


def load(folder: Path, model: Model) -> NoisyClassifier:
    """The classifier in a folder, to guide this model, on its device.

    Raises DataError if the file is missing, damaged or of another version, UserError if it is for models with other categories
    or units.
    """
    path = folder / paths.MODEL_FILE
    tensors, meta = checkpoint.load(path)
    try:
        config = Classifier(**meta["config"])
    except (KeyError, ValidationError) as error:
        raise DataError(f"{path} is not a classifier of this version.") from error
    if meta["categories"] != model.categories:
        raise UserError(
            f"The classifier knows {', '.join(meta['categories'])}, the {model.name} model other categories."
        )
    for name, own in (("mean", model.codec.mean), ("scale", model.codec.scale)):
        if own.shape != tensors[name].shape or not torch.allclose(own.cpu(), tensors[name]):
            raise UserError(
                f"The classifier and the {model.name} model must have the same codec, or scale of the data."
            )
    classifier = build(config, model)
    weights = {key.removeprefix(PREFIX): value for key, value in tensors.items() if key.startswith(PREFIX)}
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{path} was written by another version: its weights do not fit the network.") from error
    device = next(model.denoiser.parameters()).device
    return classifier.to(device).eval().requires_grad_(False)
