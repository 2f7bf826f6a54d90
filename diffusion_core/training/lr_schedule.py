"""Batch and learning rate as functions of images seen: where a run stands says all, so that a restart needs no counters.

The learning rate rises linearly over a warm-up, may fall with the inverse square root from some point on (as the EDM2
authors train: Karras et al. 2024, arXiv 2312.02696, eq. 67), and may go linearly to nothing over a last stretch, the cool-down
(Hägele et al. 2024, arXiv 2405.18392). A larger batch takes it along by a power of its growth: 1 is the linear rule (Goyal
et al. 2017, arXiv 1706.02677), 0.5 the square-root rule that suits Adam (Malladi et al. 2022, arXiv 2205.10287).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainConfig:
    """The numbers that decide what a training run computes; lengths are in images seen."""

    images: int
    batch: int  # total over all ranks and micro-batches
    learning_rate: float = 1e-3
    warmup_images: int = 0  # the learning rate grows linearly to its value
    decay_from_images: int = 0  # from there on it falls with the inverse square root of the images seen; 0: never
    cooldown_images: int = 0  # over the last so many images it goes linearly to nothing
    batch_growth: tuple[tuple[int, int], ...] = ()  # (images, batch): from so many images seen on, batches of this size
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
    """The learning rate of the step that begins after `nimg` images; the phases are read at the step's end."""
    batch = batch_size(config, nimg)
    end = nimg + batch
    rate = config.learning_rate * (batch / config.batch) ** config.batch_lr_power
    rate *= min(1.0, end / max(config.warmup_images, 1))
    if config.decay_from_images:
        rate *= min(1.0, config.decay_from_images / end) ** 0.5
    if config.cooldown_images:
        # half a batch before the last step's end, so that the last step is not lost
        rate *= min(1.0, max(config.images - nimg - batch / 2, batch / 2) / config.cooldown_images)
    return rate


def steps(config: TrainConfig, nimg: int = 0) -> Iterator[tuple[int, int]]:
    """(images seen before, batch) of every step from `nimg` images to the end."""
    while nimg < config.images:
        batch = batch_size(config, nimg)
        yield nimg, batch
        nimg += batch
