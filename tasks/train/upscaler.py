"""The training of the upscaler on crops, with the same loop as the other models: `artifacts/upscaler/`."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch

from diffusion_core import rng
from diffusion_core.codecs import Affine
from diffusion_core.training.trainer import Trainer
from tasks import paths
from tasks.common.errors import DataError
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params, Upscaler
from tasks.dataset.shards import ShardDataset
from tasks.models import modality, model_file, upscaler
from tasks.models.upscaler import CropDataset
from tasks.registry import lineage
from tasks.train import data as training_data
from tasks.train import run_fingerprint, warm_start
from tasks.train.core_settings import averages, core_compute, core_config
from tasks.train.evaluation import EVALUATED, Evaluator
from tasks.train.loop import TrainingLoop
from tasks.train.state import TrainingFolder

FITTED = 512  # crops to which the scale of the network's units is fitted

log = logging.getLogger(__name__)


def train(params: Params, root: Path, device: torch.device, checkpoint: Path | None) -> None:
    """Leave the upscaler in `artifacts/upscaler/`. Raises DataError if nobody has the pixels of one of its sizes."""
    config, smallest = params.upscaler, params.pictures.size
    train_set, held_out = (ShardDataset(root / paths.SHARDS, split).pictured() for split in ("train", "val"))
    dataset = CropDataset(train_set, config, smallest, config.memory_gb)
    source = training_data.from_shards(dataset, per_coordinate=False, fitted=FITTED)
    assert isinstance(source.codec, Affine)
    model = modality.build(paths.UPSCALER, config, [], source.codec, train_set.about["margin"])
    model.denoiser.to(device)
    trainer = Trainer(
        model.denoiser,
        model.recipe,
        core_config(config),
        data=source.data,
        n=source.count,
        averages=averages(config),
        transform=upscaler.transform(config, source.codec),
        compute=core_compute(config, device),
    )
    if config.start is not None:
        trainer.warm_start(warm_start.weights(root, config.start, model))
    evaluated = {}
    for split, part in (("train", train_set), ("val", held_out)):
        try:
            crops = CropDataset(part, config, smallest)
        except DataError:  # too few held-out persons: there is then no held-out loss
            continue
        chosen = torch.tensor(evenly_spaced(crops.uncopied, EVALUATED))
        evaluated[split] = upscaler.examples(model, crops, chosen)
    held_out_digest = training_data.digest(evaluated["val"]) if "val" in evaluated else "none"
    fingerprint = run_fingerprint.of(config, source.digest, held_out_digest)
    if trainer.rank == 0:
        persons = ", ".join(
            f"{sum(size == shown for shown, _ in dataset.shown):,} with {size} pixels" for size in dataset.sizes
        )
        log.info(
            f"upscaler: {config.images:,} crops of {config.crop} pixels; of {len(train_set):,} persons {persons}; on "
            f"{device.type}, {trainer.compute.precision}, {sum(p.numel() for p in model.denoiser.parameters()):,} weights."
        )
    loop = TrainingLoop(
        params, root, model, trainer, TrainingFolder(root, paths.UPSCALER, fingerprint, config.checkpoints_kept, params),
        Evaluator(model, evaluated, rng.fold(config.seed, rng.Stream.WATCH), config.distance_samples), dataset.keys,
        lineage.trained_on(train_set, config.start), partial(model_file.save, model=model),
    )  # fmt: skip
    loop.resume(checkpoint)
    if not dataset.in_memory:
        pin = device.type == "cuda"
        trainer.data = training_data.read_ahead(dataset, source, trainer.upcoming(), config.workers, pin)
    loop.run()


def config_of(params: Params) -> Upscaler:
    """The upscaler's section of the parameters."""
    return params.upscaler
