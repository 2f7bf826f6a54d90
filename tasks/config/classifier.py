"""The section `classifier`: a classifier of noisy examples, which guides the sampling of a trained model."""

from __future__ import annotations

from pydantic import Field

from tasks.config.section import Positive, Section, Seed


class Classifier(Section):
    """The training of one classifier. Data, noise levels and the kind of network are those of the model that it guides."""

    width: Positive = 64
    depth: Positive = 2
    heads: Positive = 4
    images: Positive = 32_000  # length of the training
    batch: Positive = 128
    learning_rate: float = Field(default=1e-3, gt=0, lt=1)
    warmup_images: int = Field(default=1_000, ge=0)
    cooldown_images: int = Field(default=16_000, ge=0)
    ema_halflife_images: int = Field(default=1_000, ge=0)
    seed: Seed = 0
