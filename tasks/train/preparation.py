"""From a model and its data to a training that can run: the trainer, what is evaluated, the folder, the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core import error_curve, rng
from diffusion_core.codecs import Affine, Latent
from diffusion_core.conditioning import to_device
from diffusion_core.training import microbatch_size
from diffusion_core.training.trainer import Trainer, Transform
from tasks import paths
from tasks.common.errors import DataError
from tasks.common.subset import evenly_spaced
from tasks.config.motion import MotionModel
from tasks.config.params import Params
from tasks.config.video import VideoModel
from tasks.dataset.padding import any_padding
from tasks.dataset.shards import ShardDataset
from tasks.models import conditioning, inputs, modality, model_file, motion
from tasks.models import video as video_model
from tasks.models.codec import PictureCodec
from tasks.models.conditioning import AnyModel
from tasks.models.inputs import Examples
from tasks.models.modality import Model
from tasks.registry import lineage
from tasks.train import data as training_data
from tasks.train import run_fingerprint, video
from tasks.train.core_settings import averages, core_compute, core_config
from tasks.train.data import Encoder, ExampleDataset, Source
from tasks.train.evaluation import EVALUATED, Evaluator
from tasks.train.loop import TrainingLoop
from tasks.train.state import TrainingFolder

MEASURED_ERRORS = 64  # examples on which the error at each noise level is measured
ERROR_SIGMAS = (0.002, 100.0, 20)  # smallest, largest, how many


@dataclass(frozen=True)
class TrainingData:
    """What a model is trained and evaluated on. `pin`: whether batches go to a GPU; `stills`: what is beside clips."""

    train: ShardDataset
    held_out: ShardDataset
    categories: list[str]
    dataset: ExampleDataset
    source: Source
    in_memory: bool
    pin: bool
    stills: motion.Stills | video_model.Stills | None = None


def load_data(
    root: Path,
    name: str,
    config: AnyModel,
    device: torch.device,
    codec: PictureCodec | None,
    categories: list[str] | None = None,
    datasets: tuple[ShardDataset, ShardDataset] | None = None,
) -> TrainingData:
    """The data of a model. Without a codec one is fitted; without categories they are those of the training set.

    `datasets`: training set and held-out examples, by default the splits `train` and `val`.

    Raises DataError if there is nothing to train on.
    """
    if datasets is None:
        datasets = inputs.usable(root, "train", config), inputs.usable(root, "val", config)
    train, held_out = datasets
    if not len(train):
        missing = (
            "There is no clip in the training split"
            if name in (paths.MOTION, paths.VIDEO)
            else "No training person has a picture"
        )
        raise DataError(f"{missing}: there is nothing to train {name} on.")
    beside = None
    if isinstance(config, MotionModel | VideoModel) and config.stills:
        persons = ShardDataset(root / paths.SHARDS, "train")
        beside = persons.pictured() if isinstance(config, VideoModel) else persons
    # Categories that only held-out data have would get untrained weights.
    if categories is None:
        categories = sorted({*train.categories(), *(beside.categories() if beside is not None else ())})
    padded = isinstance(config, VideoModel) and (
        video.padded(root) or any_padding([*train.metas(), *(beside.metas() if beside is not None else [])])
    )
    dataset = ExampleDataset(train, config, categories, codec.factor if codec is not None else 1, padded)
    encoder = Encoder(codec, root / paths.LATENTS, device) if isinstance(codec, Latent) else None
    affine = codec if isinstance(codec, Affine) else None
    pin = device.type == "cuda"
    fits_in_memory = dataset.bytes() <= config.memory_gb * 1e9
    if fits_in_memory:
        source = training_data.in_memory(dataset, name != "pictures", pin, encoder, affine)
    else:
        source = training_data.from_shards(dataset, name != "pictures", encoder, affine)
    stills: motion.Stills | video_model.Stills | None = None
    if beside is not None and isinstance(config, VideoModel):
        stills = video.stills(
            beside, config, categories, source.codec, root / paths.LATENTS, device, padded=dataset.padded
        )
    elif beside is not None:
        stills = motion.Stills(beside, categories, source.codec, config.mirror)
    return TrainingData(train, held_out, categories, dataset, source, fits_in_memory, pin, stills)


def trainer(model: Model, config: AnyModel, data: TrainingData, device: torch.device) -> Trainer:
    """The core's trainer of a model, which lies on the device."""
    made = Trainer(
        model.denoiser,
        model.recipe,
        core_config(config),
        data=data.source.data,
        n=data.source.count,
        averages=averages(config),
        transform=_transform(config, data),
        compute=core_compute(config, device),
    )
    if config.microbatch == "largest":
        made.compute = replace(made.compute, microbatch=microbatch_size.largest_microbatch(made))
    return made


def _transform(config: AnyModel, data: TrainingData) -> Transform | None:
    """What is done with training batches."""
    if isinstance(config, MotionModel):
        assert not isinstance(data.stills, video_model.Stills)
        return motion.transform(config, data.stills)
    changed = conditioning.transform(config, data.source.codec)
    if isinstance(config, VideoModel):
        assert not isinstance(data.stills, motion.Stills)
        return video_model.with_stills(changed, data.stills, config.stills)
    return changed


def training_loop(
    params: Params,
    root: Path,
    name: str,
    model: Model,
    config: AnyModel,
    trainer: Trainer,
    data: TrainingData,
    start: str | None = None,
    more: Mapping[str, str] | None = None,
    output: Path | None = None,
) -> TrainingLoop:
    """The loop that trains a model under a name, from the beginning.

    `start`: sha256 of the model whose weights it begins with, by default that of the config. `more`: what else identifies the
    training. `output`: the folder of the finished model, by default that of the name.
    """
    evaluated = {}
    for split, shards in (("train", data.train), ("val", data.held_out)):
        if len(shards):
            # Of clips of pictures, as many frames as there are pictures otherwise.
            count = EVALUATED // model.shape[0] if isinstance(config, VideoModel) else EVALUATED
            examples = model.examples(shards.take(evenly_spaced(len(shards), max(2, count))))
            evaluated[split] = Examples(data.source.codec.encode(examples.x0), examples.cond)
    held_out_digest = training_data.digest(evaluated["val"]) if "val" in evaluated else "none"
    # A student (`more` names its teacher) learns from the steps of a sampler.
    fingerprint = run_fingerprint.of(config, data.source.digest, held_out_digest, samplers=bool(more))
    fingerprint |= dict(more or {})
    if data.stills is not None:
        fingerprint["what is beside clips"] = data.stills.digest()
    evaluator = Evaluator(model, evaluated, rng.fold(config.seed, rng.Stream.WATCH), config.distance_samples)
    folder = TrainingFolder(root, name, fingerprint, config.checkpoints_kept, params)
    trained_on = lineage.trained_on(data.train, start or config.start)
    if isinstance(config, MotionModel | VideoModel):  # the persons that the clips are of, and those beside them
        rows = {row for meta in data.train.metas() for row in meta["rows"]}
        rows.update(data.stills.keys if data.stills is not None else ())
        trained_on["keys"] = sorted({*trained_on["keys"], *rows})
    some = evaluated["train"].some(MEASURED_ERRORS)
    save = partial(save_measured, model=model, examples=some, device=trainer.device)
    return TrainingLoop(
        params, root, model, trainer, folder, evaluator, data.dataset.keys, trained_on, save, name, output
    )


def run(loop: TrainingLoop, data: TrainingData, checkpoint: Path | None = None) -> None:
    """Resume the training from its last checkpoint, or from the one that is given, and run it to its end."""
    loop.resume(checkpoint)
    if not data.in_memory:
        upcoming = loop.trainer.upcoming()
        loop.trainer.data = training_data.read_ahead(data.dataset, data.source, upcoming, loop.config.workers, data.pin)
    loop.run()


def save_measured(
    folder: Path,
    weights: dict[str, Tensor],
    meta: dict[str, Any],
    model: Model,
    examples: Examples,
    device: torch.device,
) -> None:
    """Write the model with its error at each noise level, which some samplers and timesteps need."""
    own = {name: value for name, value in weights.items() if not name.startswith(model_file.SCHEDULE)}
    if model.recipe.degrade is None and model.recipe.error is None and model.student is None:
        trained = model_file.with_weights(model, own, device)
        x0, cond = examples.x0.to(device), to_device(examples.cond, device)
        with trained.autocast():
            errors = error_curve.measure(
                trained.as_sampled(trained.denoiser), x0, error_curve.spaced(*ERROR_SIGMAS), model.config.seed, cond
            )
        meta = {**meta, modality.ERRORS: {"sigmas": errors.sigmas, "errors": errors.errors}}
    model_file.save(folder, model, weights, meta)
