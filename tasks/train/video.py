"""The training of the video model, which begins as the picture model in `artifacts/pictures/`."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError

from diffusion_core.codecs import Latent
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import UserError
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params, validation_sentence
from tasks.config.video import VideoModel
from tasks.dataset.shards import ShardDataset
from tasks.models import codec as stored_codec
from tasks.models.codec import PictureCodec
from tasks.models.video import Stills
from tasks.train import data as training_data
from tasks.train.data import Encoder, ExampleDataset


def config_of(params: Params, root: Path) -> VideoModel:
    """The picture model's parameters, with those of `video.model` for the training.

    Raises UserError if such a picture model cannot be inflated, DataError if there is none.
    """
    folder = paths.model_folder(root, "pictures")
    meta = checkpoint.about(folder / paths.MODEL_FILE)
    own = {**meta["config"], **params.video.model.model_dump(), "start": paths.sha256(folder)}
    own["copies"] = 0  # a jittered copy of a clip would need the same jitter in each frame
    try:
        return VideoModel.model_validate(own)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), "The picture model", own)) from error


def codec(root: Path) -> PictureCodec:
    """The codec of the picture model."""
    tensors, meta = checkpoint.load(paths.model_folder(root, "pictures") / paths.MODEL_FILE)
    return stored_codec.from_tensors(tensors, meta.get("codec"))


def padded(root: Path) -> bool:
    """Whether the picture model was trained on pictures with padding."""
    meta = checkpoint.about(paths.model_folder(root, "pictures") / paths.MODEL_FILE)
    return bool(meta.get("padded", False))


def stills(
    dataset: ShardDataset,
    config: VideoModel,
    categories: list[str],
    codec: PictureCodec,
    folder: Path,
    device: torch.device,
    padded: bool,
) -> Stills:
    """Pictures of a dataset, evenly spaced, in the network's units. `folder`: where their latents are kept."""
    some = dataset.take(evenly_spaced(len(dataset), config.most_stills))
    pictures = ExampleDataset(some, config.of_pictures(), categories, codec.factor, padded)
    if isinstance(codec, Latent):
        source = training_data.in_memory(pictures, False, False, Encoder(codec, folder, device))
    else:
        source = training_data.in_memory(pictures, False, False, affine=codec)
    return Stills(source.subset.x0, source.subset.cond, list(some.keys), source.digest)
