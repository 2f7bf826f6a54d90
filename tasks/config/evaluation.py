"""Sampling and judging: sample, memorization, fidelity, tracking."""

from __future__ import annotations

from pydantic import Field

from tasks.config.section import Fraction, Positive, Section, Seed


class Sample(Section):
    """How many samples, and how they are drawn."""

    count: Positive
    steps: int = Field(18, ge=1, le=1000)
    guidance: float = Field(1.0, ge=0, le=100)  # 1: no guidance
    batch: Positive = 128  # changes speed only, never a sample
    seed: Seed = 0


class Sampling(Section):
    """Sampling of the two models."""

    poses: Sample
    pictures: Sample
    train_conditions: int = Field(100, ge=0)  # pictures drawn with conditions of the training set, for comparison


class Memorization(Section):
    """The copy test."""

    level: float = Field(0.01, gt=0, lt=0.5)  # of the dataset verdict
    false_discovery: float = Field(0.1, gt=0, lt=1)  # of the list of copies
    planted: Fraction = 0.01  # copies planted as positive control
    # Fewer, and the verdict is TOO-FEW instead of CLEAN: nothing is promoted on too little evidence.
    needed_groups: Positive = 100  # of training and held-out items together
    needed_heldout_groups: Positive = 10
    needed_samples: Positive = 100


class Weights(Section):
    """Where the weights of a published network are, and the digest by which they are known."""

    source: str = Field(min_length=1)  # path in the workspace, or URL
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Fidelity(Section):
    """Distances between generated and held-out data: weights of the networks in whose features they are measured.

    A network whose weights are not given has no distances; the report says so.
    """

    inception: Weights | None = None  # Inception-v3 as torch-fidelity reads it: FID, KID, Inception score
    dinov2: Weights | None = None
    clip: Weights | None = None
    vgg: Weights | None = None
    video: Weights | None = None  # I3D or C3D: Frechet video distance


class Tracking(Section):
    """The MLflow store."""

    store: str = "mlflow.db"  # sqlite file in the workspace, or a full tracking URI
    experiment: str = Field("contrapposto", min_length=1)
