"""Batch size and learning rate as functions of images seen, so that a restart needs no counters.

The learning rate rises linearly during a warm-up. It may then fall with the inverse square root of the images seen (EDM2:
Karras et al. 2024, arXiv 2312.02696, eq. 67), and linearly to zero in a cool-down at the end (Hägele et al. 2024, arXiv
2405.18392). Where the batch grows, the learning rate is scaled by a power of that growth: 1 is the linear rule (Goyal et al.
2017, arXiv 1706.02677), 0.5 the square-root rule for Adam (Malladi et al. 2022, arXiv 2205.10287).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from diffusion_core.training import optimisers


@dataclass(frozen=True)
class TrainConfig:
    """The numbers that decide what a training run computes. Lengths are in images seen."""

    images: int
    batch: int  # total over all ranks and micro-batches
    learning_rate: float = 1e-3  # AdamW's
    optimiser: optimisers.Name = "adamw"
    muon_learning_rate: float = 0.005  # of the matrices that Muon updates; both follow the same schedule
    warmup_images: int = 0  # the learning rate rises linearly to its value
    decay_from_images: int = 0  # from then on it falls with the inverse square root of the images seen; 0: never
    cooldown_images: int = 0  # over the last so many images it falls linearly to zero
    batch_growth: tuple[tuple[int, int], ...] = ()  # (images, batch): after so many images seen, batches of this size
    batch_lr_power: float = 0.5  # the learning rate is scaled by (batch / first batch) to this power
    ema_halflife_images: int = 0
    ema_warmup: float = 0.05  # the half-life is at most this share of the images seen
    grad_clip: float = 1.0  # largest norm of the gradient
    weight_decay: float = 0.0
    condition_dropout: float = 0.0
    seed: int = 0


def batch_size(config: TrainConfig, nimg: int) -> int:
    """Images in the step that begins after `nimg` images."""
    return next((batch for start, batch in reversed(config.batch_growth) if start <= nimg), config.batch)


def learning_rate(config: TrainConfig, nimg: int) -> float:
    """The learning rate of the step that begins after `nimg` images, by the images seen at the step's end."""
    batch = batch_size(config, nimg)
    end = nimg + batch
    rate: float = config.learning_rate * (batch / config.batch) ** config.batch_lr_power
    rate *= min(1.0, end / max(config.warmup_images, 1))
    if config.decay_from_images:
        rate *= min(1.0, config.decay_from_images / end) ** 0.5
    if config.cooldown_images:
        # Half a batch before the step's end, so that the rate of the last step is not zero.
        rate *= min(1.0, max(config.images - nimg - batch / 2, batch / 2) / config.cooldown_images)
    return rate


def steps(config: TrainConfig, nimg: int = 0) -> Iterator[tuple[int, int]]:
    """(images seen before, batch) of every step from `nimg` images to the end."""
    while nimg < config.images:
        batch = batch_size(config, nimg)
        yield nimg, batch
        nimg += batch
