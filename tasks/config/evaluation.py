"""The sections of sampling and evaluation: sample, memorization, fidelity, tracking."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tasks.config.section import Fraction, Positive, SamplerName, Section, Seed


class Guidance(Section):
    """Classifier-free guidance with options."""

    scale: float = Field(default=1.0, ge=0, le=100)  # 1: none
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None  # of sigma; null: everywhere
    without: list[str] = Field(default=[])  # conditions that the second evaluation of the network withholds; []: all
    # How far the spread of the estimate is reduced to that without guidance.
    rescale: float = Field(default=0.0, ge=0, le=1)

    @classmethod
    def of(cls, value: float | Guidance) -> Guidance:
        """The guidance with this scale, or `value` itself."""
        return value if isinstance(value, Guidance) else cls(scale=value)

    @model_validator(mode="after")
    def _interval_is_ordered(self) -> Guidance:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval must be two increasing values of sigma, got {self.interval}")
        return self


def _form(value: object) -> str:
    return "section" if isinstance(value, dict | Guidance) else "scale"


Scale = Annotated[float, Field(ge=0, le=100)]
GuidanceOrScale = Annotated[Annotated[Scale, Tag("scale")] | Annotated[Guidance, Tag("section")], Discriminator(_form)]

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")  # of MLflow tracking URIs


class Sample(Section):
    """Sampling of one model."""

    count: Positive
    sampler: SamplerName = "unipc"
    steps: int = Field(18, ge=1, le=1000)  # levels, for the sampler langevin
    guidance: GuidanceOrScale = 1.0  # scale of classifier-free guidance, or a section with options; 1: none
    batch: Positive = 128  # changes the speed, never a sample
    seed: Seed = 0

    @property
    def guidance_options(self) -> Guidance:
        """The guidance as a section."""
        return Guidance.of(self.guidance)

    @property
    def guidance_json(self) -> float | dict[str, Any]:
        """The guidance as in `params.yaml`."""
        return self.guidance.model_dump() if isinstance(self.guidance, Guidance) else self.guidance


class Sampling(Section):
    """Sampling of the two models."""

    poses: Sample
    pictures: Sample
    train_conditions: int = Field(100, ge=0)  # pictures drawn with conditions of the training set, for comparison


class Memorization(Section):
    """The memorization test."""

    level: float = Field(0.01, gt=0, lt=0.5)  # significance level of the verdict
    false_discovery: float = Field(0.1, gt=0, lt=1)  # rate in the list of copies
    planted: Fraction = 0.01  # share of planted copies, the positive control
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
        if not separator and not re.fullmatch(r"[^:]+\.(db|sqlite|sqlite3)", store):
            raise ValueError(
                f"{store!r} is neither a file name that ends in .db, .sqlite or .sqlite3, nor a URI such as "
                "http://127.0.0.1:5000"
            )
        return store
