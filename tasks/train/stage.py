"""Stage `train <model> [CHECKPOINT]`: train one model on the shards and leave it in `artifacts/<model>/`.

    model.safetensors   averaged weights of the best watch, codec, and all that is needed to build it again
    training.json       loss against images seen, what was watched, why it ended and which weights were kept
    loss.csv, denoising_loss.csv   the curves of training.json, for `dvc plots`
    trained_on.json     whom it has seen (see `lineage`)
    snapshots/          further averages, if any were asked for

The state of a training under way lives in `.contrapposto/training/<model>/`, out of DVC's reach: a run that is killed
finds it there and goes on to the same bits. A CHECKPOINT that is named is gone on with or refused.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from diffusion_core import rng
from diffusion_core.training import data_scale as measure
from diffusion_core.training import microbatch_size
from diffusion_core.training.compute import Compute
from diffusion_core.training.ema import Decay, halflife, power
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common.errors import DataError, UserError
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params, Pictures, Poses
from tasks.models import conditioning, modality
from tasks.models.modality import Examples, Model
from tasks.registry import lineage
from tasks.train import launch, run_fingerprint
from tasks.train import warm_start as start
from tasks.train.data import Reader, from_shards, in_memory, read_ahead
from tasks.train.evaluation import WATCHED, Watch
from tasks.train.loop import Session
from tasks.train.state import Folder

MEASURED = 512  # examples from which the data's scale is told


def run(params: Params, root: Path, model: str, checkpoint: str | None = None) -> None:
    """Train `model`; with more than one rank, through torchrun. Killed and run again it ends with the same bits."""
    config = modality.config_of(params, model)
    if config.ranks > 1 and not launch.under_torchrun():
        launch.torchrun(["tasks", "train", model, *([checkpoint] if checkpoint else [])], config.ranks, root)
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA's products are not deterministic
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # nothing reads such memory
    try:
        device = launch.join()
        _train(params, root, model, config, device, Path(checkpoint) if checkpoint else None)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def core_config(config: Poses | Pictures) -> TrainConfig:
    """The parameters that the training loop knows."""
    return TrainConfig(
        images=config.images,
        batch=config.batch,
        learning_rate=config.learning_rate,
        warmup_images=config.warmup_images,
        decay_from_images=config.decay_from_images,
        cooldown_images=config.cooldown_images,
        batch_growth=tuple((growth.images, growth.batch) for growth in config.batch_growth),
        batch_lr_power=config.batch_lr_power,
        ema_halflife_images=config.ema_halflife_images,
        grad_clip=config.grad_clip,
        weight_decay=config.weight_decay,
        condition_dropout=config.condition_dropout,
        seed=config.seed,
    )


def core_compute(config: Poses | Pictures, device: torch.device) -> Compute:
    """How the parameters say that this kind of device is to compute."""
    kind = config.cuda if device.type == "cuda" else config.cpu
    if (
        config.sharded
        and device.type == "cuda"
        and distributed.is_initialized()
        and distributed.get_backend() == "gloo"
    ):
        raise UserError("Weights can be split over GPUs (sharded) only if every rank has a GPU of its own.")
    size = None if config.microbatch == "largest" else config.microbatch
    return Compute(
        kind.precision, kind.compile, config.recompute, size, config.sharded and distributed.is_initialized()
    )


def averages(config: Poses | Pictures) -> dict[str, Decay]:
    """The average that becomes the model, and those that are stored."""
    widths = {f"power_{width:g}": power(width) for width in config.power_averages}
    return {"ema": halflife(config.ema_halflife_images), **widths}


def _train(
    params: Params, root: Path, name: str, config: Poses | Pictures, device: torch.device, checkpoint: Path | None
) -> None:
    train, held_out = (modality.usable(root, split, config) for split in ("train", "val"))
    if not len(train):
        raise DataError(f"No training person has a picture: there is nothing to train {name} on.")
    categories: list[str] = train.about["categories"]
    reader = Reader(train, config, categories)
    keys = train.keys * (len(reader) // len(train))
    fits, pin = reader.bytes() <= config.memory_gb * 1e9, device.type == "cuda"
    source = in_memory(reader, keys, name == "poses", pin) if fits else from_shards(reader, keys, name == "poses")
    codec = source.codec
    model = modality.build(name, config, categories, codec, train.about["margin"])
    model.denoiser.to(device)
    here = run_fingerprint.of(config, source.digest)
    trainer = Trainer(
        model.denoiser,
        model.recipe,
        core_config(config),
        data=source.data,
        n=source.count,
        averages=averages(config),
        transform=conditioning.transform(config, codec),
        compute=core_compute(config, device),
    )
    if config.start is not None:
        trainer.warm_start(start.weights(root, config.start, model))
    if config.microbatch == "largest":
        trainer.compute = replace(trainer.compute, microbatch=microbatch_size.largest_microbatch(trainer))
    watched = {
        split: part.take(evenly_spaced(len(part), WATCHED)) for split, part in (("train", train), ("val", held_out))
    }
    parts = {split: modality.examples(part, config, categories, False) for split, part in watched.items() if len(part)}
    parts = {split: Examples(codec.encode(part.x0), part.cond) for split, part in parts.items()}
    if trainer.rank == 0:
        _announce(trainer, model, source.some, len(train))
    watch = Watch(model, parts, rng.fold(config.seed, rng.Stream.WATCH), config.distance_samples)
    folder = Folder(root, name, here, config.checkpoints_kept)
    session = Session(params, root, model, trainer, folder, watch, keys, lineage.trained_on(train, config.start))
    session.resume(checkpoint)
    if not fits:
        trainer.data = read_ahead(reader, source, trainer.upcoming(), config.workers, pin)
    session.run()


def _announce(trainer: Trainer, model: Model, examples: Examples, persons: int) -> None:
    """Say what is going to be done."""
    config = model.config
    scale = measure.data_scale(examples.some(MEASURED).x0) if persons > 1 else None
    mirrored = ", and as many mirror images" if config.mirror else ""
    outlook = measure.training_outlook(persons, config.images, scale)
    print(f"{model.name}: {outlook}{mirrored and ' Counted' + mirrored + '.'}")
    compute = trainer.compute
    parts = f" in micro-batches of {compute.microbatch}" if compute.microbatch else ""
    ways = f", {trainer.world} ranks, weights {'split' if compute.sharded else 'repeated'}" if trainer.world > 1 else ""
    print(f"{model.name}: on {trainer.device.type}, {compute.precision}, batches of {config.batch}{parts}{ways}.")
    if trainer.compile_warning:
        print(f"{model.name}: {trainer.compile_warning}")
