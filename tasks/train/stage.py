"""Stage `train <model> [CHECKPOINT]`: train one model on the shards and leave it in `artifacts/<model>/`.

    model.safetensors   averaged weights of the best evaluation, the codec, and the parameters to build the model again
    training.json       loss against images seen, the evaluations, why the training ended, which weights were kept
    loss.csv, denoising_loss.csv   the curves of training.json, for `dvc plots`
    trained_on.json     the samples it was trained on, see `lineage`
    snapshots/          further averages, if `power_averages` asks for any

The state of an unfinished training is in `.contrapposto/training/<model>/`, which DVC does not track. A run that is killed
resumes from there and ends with the same bits. A CHECKPOINT that is given is resumed, or refused if it is another training's.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from diffusion_core import error_curve, rng
from diffusion_core.training import data_scale, microbatch_size
from diffusion_core.training.trainer import Trainer
from diffusion_core.training_choices import fill_in
from tasks import paths
from tasks.common.errors import DataError
from tasks.common.subset import evenly_spaced
from tasks.config.codec import Codec
from tasks.config.params import Params, Pictures, Poses
from tasks.models import codec, conditioning, modality
from tasks.models.modality import Examples, Model
from tasks.registry import lineage
from tasks.train import codec as codec_training
from tasks.train import data as training_data
from tasks.train import launch, run_fingerprint, warm_start
from tasks.train.core_settings import averages, core_compute, core_config
from tasks.train.data import Encoder, ExampleDataset
from tasks.train.evaluation import EVALUATED, Evaluator
from tasks.train.loop import TrainingLoop
from tasks.train.state import TrainingFolder

MEASURED = 512  # examples from which the scale of the data is estimated
MEASURED_ERRORS = 64  # examples on which the error at each noise level is measured
ERROR_SIGMAS = (0.002, 100.0, 20)  # smallest, largest, how many

log = logging.getLogger(__name__)


def run(params: Params, root: Path, model: str, checkpoint: str | None = None) -> None:
    """Train `model`, with torchrun if there is more than one rank. Killed and run again, it ends with the same bits."""
    config = codec_training.config_of(params) if model == codec.NAME else modality.config_of(params, model)
    if not launch.under_torchrun():
        ranks = launch.ranks(config)
        if ranks > 1:
            launch.torchrun(["tasks", "train", model, *([checkpoint] if checkpoint else [])], ranks, root)
            return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products are not deterministic
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # no code reads such memory
    try:
        device = launch.join()
        path = Path(checkpoint) if checkpoint else None
        if isinstance(config, Codec):
            codec_training.train(params, root, device, path)
        else:
            _train(params, root, model, config, device, path)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _train(
    params: Params, root: Path, name: str, config: Poses | Pictures, device: torch.device, checkpoint: Path | None
) -> None:
    train, held_out = (modality.usable(root, split, config) for split in ("train", "val"))
    if not len(train):
        raise DataError(f"No training person has a picture: there is nothing to train {name} on.")
    categories = train.categories()  # categories that only held-out data have would get untrained weights
    latents = codec_training.trained(params, root) if name == "pictures" else None
    factor = latents.factor if latents is not None else 1
    dataset = ExampleDataset(train, config, categories, factor)
    encoder = None if latents is None else Encoder(latents, root / paths.LATENTS, device)
    pin = device.type == "cuda"
    fits_in_memory = dataset.bytes() <= config.memory_gb * 1e9
    if fits_in_memory:
        source = training_data.in_memory(dataset, name == "poses", pin, encoder)
    else:
        source = training_data.from_shards(dataset, name == "poses", encoder)
    with_numbers = _measured(config, source.subset)
    model = modality.build(name, with_numbers, categories, source.codec, train.about["margin"], dataset.padded)
    model = model.with_initial(source.subset.x0)
    model.denoiser.to(device)
    trainer = Trainer(
        model.denoiser,
        model.recipe,
        core_config(config),
        data=source.data,
        n=source.count,
        averages=averages(config),
        transform=conditioning.transform(config, source.codec),
        compute=core_compute(config, device),
    )
    if config.start is not None:
        trainer.warm_start(warm_start.weights(root, config.start, model))
    if config.microbatch == "largest":
        trainer.compute = replace(trainer.compute, microbatch=microbatch_size.largest_microbatch(trainer))
    evaluated = {}
    for split, shards in (("train", train), ("val", held_out)):
        if len(shards):
            chosen = shards.take(evenly_spaced(len(shards), EVALUATED))
            examples = model.examples(chosen)
            evaluated[split] = Examples(source.codec.encode(examples.x0), examples.cond)
    held_out_digest = training_data.digest(evaluated["val"]) if "val" in evaluated else "none"
    fingerprint = run_fingerprint.of(config, source.digest, held_out_digest)
    if trainer.rank == 0:
        _announce(trainer, model, source.subset, len(train))
    evaluator = Evaluator(model, evaluated, rng.fold(config.seed, rng.Stream.WATCH), config.distance_samples)
    folder = TrainingFolder(root, name, fingerprint, config.checkpoints_kept)
    trained_on = lineage.trained_on(train, config.start)
    save = partial(_save, model=model, examples=evaluated["train"].some(MEASURED_ERRORS), device=device)
    loop = TrainingLoop(params, root, model, trainer, folder, evaluator, dataset.keys, trained_on, save)
    loop.resume(checkpoint)
    if not fits_in_memory:
        trainer.data = training_data.read_ahead(dataset, source, trainer.upcoming(), config.workers, pin)
    loop.run()


def _save(
    folder: Path,
    weights: dict[str, Tensor],
    meta: dict[str, Any],
    model: Model,
    examples: Examples,
    device: torch.device,
) -> None:
    """Write the model with its error at each noise level, which some samplers and timesteps need."""
    own = {name: value for name, value in weights.items() if not name.startswith(modality.SCHEDULE)}
    if model.recipe.degrade is None:
        trained = modality.with_weights(model, own, device)
        x0, cond = examples.x0.to(device), {key: value.to(device) for key, value in examples.cond.items()}
        with trained.autocast():
            errors = error_curve.measure(
                trained.as_sampled(trained.denoiser), x0, error_curve.spaced(*ERROR_SIGMAS), model.config.seed, cond
            )
        meta = {**meta, modality.ERRORS: {"sigmas": errors.sigmas, "errors": errors.errors}}
    modality.save(folder, model, weights, meta)


def _measured(config: Poses | Pictures, examples: Examples) -> Poses | Pictures:
    """The config with numbers instead of the recipe's parameters that are `auto`. Raises DataError if they cannot be measured.

    Two decimals, so that another machine's rounding errors do not make it another training.
    """
    training = config.training
    if not training.measured:
        return config
    try:
        scale = data_scale.data_scale(examples.some(MEASURED).x0)
    except ValueError as error:
        raise DataError(f"{', '.join(training.measured)} cannot be auto: {error}.") from error
    values = {"p_mean": round(scale.mean, 2), "p_std": round(scale.std, 2)}
    shown = ", ".join(f"{name} {values[name]:.2f}" for name in training.measured)
    log.info(f"Measured of the data: {shown}.")
    return config.with_parameters(fill_in(training.parameters, values))


def _announce(trainer: Trainer, model: Model, examples: Examples, persons: int) -> None:
    """Log how large the training is, and how it is computed."""
    config, name = model.config, model.name
    scale = data_scale.data_scale(examples.some(MEASURED).x0) if persons > 1 else None
    mirrored = " Mirror images are not counted." if config.mirror else ""
    log.info(f"{name}: {data_scale.training_outlook(persons, config.images, scale)}{mirrored}")
    compute = trainer.compute
    size = f" in micro-batches of {compute.microbatch}" if compute.microbatch else ""
    ranks = (
        f", {trainer.world} ranks, weights {'sharded' if compute.sharded else 'replicated'}"
        if trainer.world > 1
        else ""
    )
    log.info(f"{name}: on {trainer.device.type}, {compute.precision}, batches of {config.batch}{size}{ranks}.")
    if trainer.compile_warning:
        log.info(f"{name}: {trainer.compile_warning}")
