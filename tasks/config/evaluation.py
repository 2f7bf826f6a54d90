"""The sections of sampling and evaluation: sample, memorization, fidelity, tracking."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from diffusion_core import choices
from tasks import paths
from tasks.config import addresses
from tasks.config.sampling import SamplingChoices
from tasks.config.section import Fraction, Positive, SamplerName, Section, Seed

SCHEMES = (*addresses.HTTP, "sqlite", *addresses.SERVERS)  # of MLflow tracking URIs


class Sample(SamplingChoices):
    """Sampling of one model."""

    # The folder in artifacts/: the model itself, its student (see `distill`), or its adapted form (see `adapt`). It is what is
    # judged, promoted and served.
    model: Literal["poses", "pictures", "poses_student", "pictures_student", "poses_adapted", "pictures_adapted"]
    count: Positive
    batch: Positive = 128  # changes the speed, never a sample
    seed: Seed = 0
    prompt: str | None = Field(default=None, min_length=1)  # of all samples; null: the captions of the conditions


class Upscaling(Section):
    """Sampling of the upscaler."""

    sampler: SamplerName = "unipc"
    steps: int = Field(default=8, ge=1, le=1000)
    # Sigma of the noise on the smaller picture, which hides what the picture model draws badly (Ho et al. 2021, section 4.2).
    low_noise: float = Field(default=0.1, ge=0, le=10)
    tile: int = Field(default=128, ge=16, le=1024)  # pixels along the side of what is enlarged at once
    overlap: int = Field(default=32, ge=0, le=512)  # pixels that neighbouring tiles share
    batch: Positive = 16  # pictures at once; changes the speed, never a sample

    @property
    def sampling(self) -> choices.Sampling:
        """The sampler and its steps."""
        return choices.Sampling(self.sampler, self.steps)

    @model_validator(mode="after")
    def _tiles_overlap(self) -> Upscaling:
        if self.overlap > self.tile // 2:
            raise ValueError(f"overlap must be at most half a tile ({self.tile // 2}), got {self.overlap}")
        return self


class Sampling(Section):
    """Sampling of the models."""

    poses: Sample
    pictures: Sample
    upscaler: Upscaling = Upscaling()
    train_conditions: int = Field(100, ge=0)  # pictures drawn with conditions of the training set, for comparison

    @model_validator(mode="after")
    def _samples_its_own_model(self) -> Sampling:
        for name, sample in (("poses", self.poses), ("pictures", self.pictures)):
            if sample.model not in (name, paths.student(name), paths.adapted(name)):
                raise ValueError(
                    f"{name}.model must be {name}, {paths.student(name)} or {paths.adapted(name)}, got {sample.model}"
                )
        return self


class Memorization(Section):
    """The memorization test."""

    level: float = Field(0.01, gt=0, lt=0.5)  # significance level of the verdict
    false_discovery: float = Field(0.1, gt=0, lt=1)  # rate in the list of copies
    planted: int = Field(180, ge=100)  # copies planted as a positive control; they are not among the samples
    needed_power: float = Field(
        0.8, gt=0, le=1
    )  # share of them that must be recognised; with less the verdict is LOW-POWER
    # The largest share of copies that a LOW-POWER verdict may leave possible without closing the gate.
    largest_share: Fraction = 0.05
    # With fewer the verdict is TOO-FEW instead of CLEAN, and nothing is promoted.
    needed_groups: Positive = 100  # of training and held-out items together
    needed_heldout_groups: Positive = 10
    needed_samples: Positive = 100


class Weights(Section):
    """The weights of a published network: where they are, and their sha256."""

    source: str = Field(min_length=1)  # path in the workspace, or URL
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Fidelity(Section):
    """Networks in whose features generated and held-out pictures are compared.

    Without the weights of a network there are no distances in its features; the report says so.
    """

    inception: Weights | None = None  # Inception-v3 as torch-fidelity reads it: FID, KID, Inception score
    dinov2: Weights | None = None
    clip: Weights | None = None
    vgg: Weights | None = None
    video: Weights | None = None  # I3D or C3D: Frechet video distance


class Tracking(Section):
    """The MLflow tracking store."""

    store: str = "mlflow.db"  # SQLite file in the workspace, or a full tracking URI
    experiment: str = Field(default="contrapposto", min_length=1)

    @field_validator("store")
    @classmethod
    def _is_file_or_uri(cls, store: str) -> str:
        scheme, separator, _ = store.partition("://")
        if separator and scheme.partition("+")[0] not in SCHEMES:
            raise ValueError(f"{store!r} is no store of MLflow; its URI begins with one of {', '.join(SCHEMES)}")
        if separator and not addresses.is_tracking_uri(store):
            raise ValueError(
                f"{store!r} names no server, database or file, as in http://127.0.0.1:5000, postgresql://host/mlflow or "
                "sqlite:////data/mlflow.db"
            )
        if not separator and not re.fullmatch(r"[^:]+\.(db|sqlite|sqlite3)", store):
            raise ValueError(
                f"{store!r} is neither a file name that ends in .db, .sqlite or .sqlite3, nor a URI such as "
                "http://127.0.0.1:5000"
            )
        return store
