"""The file a trained model lives in.

`artifacts/<model>/model.safetensors` holds the averaged weights, the codec, and as JSON everything to build it again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion_core import training_choices
from diffusion_core.codecs import Latent, Tokens
from diffusion_core.extras.corruptions import GaussianStart
from diffusion_core.recipe import Recipe
from diffusion_core.training import parallel
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError
from tasks.config.text import TextEncoder
from tasks.models import codec as stored_codec
from tasks.models.modality import KINDS, STUDENT, ClipShape, EmbeddedText, Model, build

SCHEDULE = "schedule."  # prefix of the weights of a learned noise schedule
INITIAL = "initial."  # prefix of the tensors of a `GaussianStart`
LIMITS = ("limits.low", "limits.high")


def learned_schedule(recipe: Recipe) -> dict[str, Tensor]:
    """The weights of a learned noise schedule, which sampling needs besides the denoiser; empty if it is not learned.

    With sharded weights all ranks must call this.
    """
    if not isinstance(recipe.density, nn.Module):
        return {}
    return {f"{SCHEDULE}{name}": parallel.full_tensor(value) for name, value in recipe.density.state_dict().items()}


def save(folder: Path, model: Model, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the model into a folder. `weights`: of the denoiser, and what `learned_schedule` gives."""
    about = {
        "model": model.name,
        "config": model.config.model_dump(),
        "categories": model.categories,
        "margin": model.margin,
        "padded": model.padded,
        "codec": stored_codec.description(model.codec),
        **({STUDENT: model.meta[STUDENT]} if STUDENT in model.meta else {}),
        **({"clip": list(model.clip)} if model.clip else {}),
        **({"text": {**model.text.encoder.model_dump(), "width": model.text.width}} if model.text else {}),
        **meta,
    }
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    if model.initial is not None:
        tensors |= {f"{INITIAL}mean": model.initial.mean, f"{INITIAL}factors": model.initial.factors}
    if model.limits is not None:
        tensors |= dict(zip(LIMITS, model.limits, strict=True))
    checkpoint.save(folder / paths.MODEL_FILE, tensors | stored_codec.tensors(model.codec), about)


def load(folder: Path, device: torch.device) -> Model:
    """The trained model in a folder, in evaluation mode.

    Raises DataError if the file is missing, damaged, or written by another version.
    """
    tensors, meta = checkpoint.load(folder / paths.MODEL_FILE)
    try:
        config = KINDS[meta["model"]](**meta["config"])
    except ValidationError as error:
        raise DataError(
            f"{folder / paths.MODEL_FILE} was written by another version: its parameters are not known."
        ) from error
    codec = stored_codec.from_tensors(tensors, meta.get("codec"))
    if training_choices.RECIPES[config.recipe].tokens and isinstance(codec, Latent):
        codec = Tokens.of(codec)
    clip = ClipShape(*meta["clip"]) if "clip" in meta else None
    about = dict(meta["text"]) if "text" in meta else None
    text = EmbeddedText(width=about.pop("width"), encoder=TextEncoder(**about)) if about else None
    model = build(
        meta["model"], config, meta["categories"], codec, meta["margin"], meta.get("padded", False), clip, text
    )
    weights = {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}
    schedule = {key.removeprefix(SCHEDULE): weights.pop(key) for key in list(weights) if key.startswith(SCHEDULE)}
    if isinstance(model.recipe.density, nn.Module):
        model.recipe.density.load_state_dict(schedule)
    missing, unexpected = model.denoiser.load_state_dict(weights, strict=False)  # buffers are not in the file
    if unexpected or set(missing) & {name for name, _ in model.denoiser.named_parameters()}:
        raise DataError(
            f"{folder / paths.MODEL_FILE} was written by another version: its weights do not fit the network."
        )
    model.denoiser.to(device).eval().requires_grad_(False)
    initial = GaussianStart(tensors[f"{INITIAL}mean"], tensors[f"{INITIAL}factors"]) if model.recipe.degrade else None
    limits = (tensors[LIMITS[0]], tensors[LIMITS[1]]) if LIMITS[0] in tensors else None
    return replace(model, meta=meta, initial=initial, limits=limits)


def with_weights(model: Model, weights: dict[str, Tensor], device: torch.device) -> Model:
    """The model with other weights of its denoiser, such as a snapshot of its training, in evaluation mode on a device."""
    other = build(
        model.name, model.config, model.categories, model.codec, model.margin, model.padded, model.clip, model.text
    )
    other.denoiser.load_state_dict(weights, strict=False)  # some files have no buffers
    other.denoiser.to(device).eval().requires_grad_(False)
    return replace(other, meta=model.meta, initial=model.initial, limits=model.limits)
