"""From the parameters of a training to the settings of the core's training loop."""

from __future__ import annotations

import torch
from torch import distributed

from diffusion_core.training.compute import Compute, best_precision
from diffusion_core.training.ema import Decay, halflife, power
from diffusion_core.training.trainer import TrainConfig
from tasks.common.errors import UserError
from tasks.config.optimisation import Optimisation
from tasks.config.params import Train
from tasks.train import post_hoc_ema


def core_config(config: Optimisation, condition_dropout: float = 0.0) -> TrainConfig:
    """The parameters of the core's training loop; `condition_dropout` is that of a codec, which has no key for it."""
    return TrainConfig(
        images=config.images,
        batch=config.batch,
        optimiser=config.optimiser,
        learning_rate=config.learning_rate,
        muon_learning_rate=config.muon_learning_rate,
        warmup_images=config.warmup_images,
        decay_from_images=config.decay_from_images,
        cooldown_images=config.cooldown_images,
        batch_growth=tuple((growth.images, growth.batch) for growth in config.batch_growth),
        batch_lr_power=config.batch_lr_power,
        ema_halflife_images=config.ema_halflife_images,
        grad_clip=config.grad_clip,
        weight_decay=config.weight_decay,
        condition_dropout=config.condition_dropout if isinstance(config, Train) else condition_dropout,
        seed=config.seed,
    )


def core_compute(config: Optimisation, device: torch.device) -> Compute:
    """The settings for this kind of device. Raises UserError if weights cannot be sharded over its ranks."""
    kind = config.cuda if device.type == "cuda" else config.cpu
    if (
        config.sharded
        and device.type == "cuda"
        and distributed.is_initialized()
        and distributed.get_backend() == "gloo"
    ):
        raise UserError("Weights can be split over GPUs (sharded) only if every rank has a GPU of its own.")
    size = None if config.microbatch == "largest" else config.microbatch
    precision = best_precision(device) if kind.precision == "auto" else kind.precision
    return Compute(precision, kind.compile, config.recompute, size, config.sharded and distributed.is_initialized())


def averages(config: Optimisation) -> dict[str, Decay]:
    """The decay of each average of the weights: `ema` is evaluated, the others are stored for post-hoc EMA."""
    widths = {post_hoc_ema.average_name(width): power(width) for width in config.snapshot_widths}
    return {"ema": halflife(config.ema_halflife_images), **widths}
