"""The typed model of `params.yaml`: every knob of a run, checked once at the edge.

`load(path)` returns a `Params` or raises `UserError` with one sentence that names the key and what is allowed.
Inside the pipeline the values are trusted.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML, YAMLError

from tasks.errors import UserError

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Section(BaseModel):
    """A frozen part of the parameters that refuses unknown keys and silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Raw(Section):
    """Where the pictures are. A folder is one delivery (a part); its sub-folders are categories."""

    folder: str = Field("data/raw/mannequin", min_length=1)

    @property
    def part(self) -> str:
        """The part's name: the last component of the folder."""
        return Path(self.folder).name

    @model_validator(mode="after")
    def _named(self) -> Raw:
        if self.part in ("", ".."):  # data/poses/<part> must be a folder of its own
            raise ValueError(f"folder must end in the name of a folder, got {self.folder!r}")
        return self


class Mannequin(Section):
    """The built-in data: rendered figures whose joints are known."""

    count: Positive = 1200
    size: int = Field(224, ge=64, le=1024)  # pixels, square
    seed: Seed = 0


class Extract(Section):
    """Pose extraction with MediaPipe."""

    model: str = "models/pose_landmarker_full.task"
    min_confidence: Fraction = 0.5  # of detection, presence and tracking alike
    min_side: int = Field(64, ge=16)  # pixels; a smaller picture is refused
    workers: int = Field(0, ge=0)  # 0: one per core


class Curate(Section):
    """Which persons are kept, and which split each belongs to."""

    min_visibility: Fraction = 0.7  # mean visibility of the 12 limb landmarks
    margin: float = Field(0.08, ge=0, le=1)  # of the person's longer side, around the crop
    duplicate_bits: int = Field(3, ge=0, le=16)  # perceptual hashes of 64 bits this close are one group
    val: Fraction = 0.2
    test: Fraction = 0.1
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_train(self) -> Curate:
        if self.val + self.test >= 0.9:
            raise ValueError("val + test must stay below 0.9, so that something is left to train on")
        return self


class Shard(Section):
    """How the dataset is written."""

    size: int = Field(64, ge=16, le=512)  # pixels of the stored square crop
    samples_per_shard: Positive = 1000


class Train(Section):
    """One model's training. The clock is images seen, not steps."""

    width: int = Field(ge=16, le=4096)
    depth: int = Field(ge=1, le=64)
    heads: int = Field(ge=1, le=64)
    images: Positive  # training length, images seen
    batch: Positive  # total over all ranks and accumulation, never per device
    learning_rate: float = Field(gt=0, lt=1)
    warmup_images: int = Field(ge=0)
    ema_halflife_images: int = Field(ge=0)
    dropout: Fraction = 0.0
    mirror: bool = True  # train on the mirror image of every example too, left and right swapped
    condition_dropout: Fraction = 0.1  # how often the condition is withheld, for guidance
    checkpoint_images: Positive  # a checkpoint each so many images
    ranks: int = Field(1, ge=1, le=1024)  # processes; above 1 they are started by torchrun
    seed: Seed = 0

    @model_validator(mode="after")
    def _divides(self) -> Train:
        if self.width % (2 * self.heads):
            raise ValueError(f"width must be a multiple of 2 * heads ({2 * self.heads}), got {self.width}")
        if self.batch % self.ranks:
            raise ValueError(f"batch must be a multiple of ranks ({self.ranks}), got {self.batch}")
        return self


class Poses(Train):
    """The pose model: a transformer over the 33 joints."""


class Pictures(Train):
    """The picture model: a patch transformer conditioned on category and pose."""

    size: int = Field(32, ge=8, le=512)  # pixels
    patch: Positive = 4

    @model_validator(mode="after")
    def _patches(self) -> Pictures:
        if self.size % self.patch:
            raise ValueError(f"size must be a multiple of patch ({self.patch}), got {self.size}")
        return self


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


class Memorization(Section):
    """The copy test."""

    level: float = Field(0.01, gt=0, lt=0.5)  # of the dataset verdict
    false_discovery: float = Field(0.1, gt=0, lt=1)  # of the list of copies
    planted: Fraction = 0.01  # copies planted as positive control


class Fidelity(Section):
    """Distances between generated and held-out data."""

    inception_weights: str | None = None  # path of the Inception-v3 weights; absent: no FID
    inception_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _digest(self) -> Fidelity:
        if self.inception_weights and not self.inception_sha256:
            raise ValueError("inception_sha256 must be given with inception_weights")
        return self


class Tracking(Section):
    """The MLflow store."""

    store: str = "mlflow.db"  # sqlite file in the workspace, or a full tracking URI
    experiment: str = Field("contrapposto", min_length=1)


class Params(Section):
    """All of `params.yaml`."""

    raw: Raw
    mannequin: Mannequin
    extract: Extract
    curate: Curate
    shard: Shard
    poses: Poses
    pictures: Pictures
    sample: Sampling
    memorization: Memorization
    fidelity: Fidelity
    tracking: Tracking

    @model_validator(mode="after")
    def _sizes(self) -> Params:
        if self.pictures.size > self.shard.size:
            raise ValueError(f"pictures.size must be at most shard.size ({self.shard.size}), got {self.pictures.size}")
        return self


def _sentence(error: dict[str, Any], name: str) -> str:
    key = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{name}: {key} is not a known key."
    if error["type"] == "missing":
        return f"{name}: {key} is missing."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error":
        return f"{name}: {key}: {message}."
    return f"{name}: {key} {message}, got {error['input']!r}."


def parse(text: str, name: str = "params.yaml") -> Params:
    """The parameters in a YAML 1.2 text (the dialect DVC reads); raises UserError naming the first wrong key."""
    try:
        data = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" (line {where.line + 1})" if where else ""
        raise UserError(f"{name} is not valid YAML{line}: {getattr(error, 'problem', error)}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{name} must be a mapping of sections, got {type(data).__name__}.")
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise UserError(_sentence(dict(error.errors()[0]), name)) from error


def load(path: Path) -> Params:
    """The parameters in the file; raises UserError if it is missing, not YAML, or says something impossible."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    return parse(path.read_text(encoding="utf-8"), path.name)


def set_value(path: Path, key: str, value: Any) -> None:
    """Write one dotted key into the file, comments kept; refused with UserError if the result is not valid."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = yaml.load(path.read_text(encoding="utf-8"))
    *sections, last = key.split(".")
    node = document
    for section in sections:
        node = node[section]
    if node.get(last) == value:
        return
    node[last] = value
    text = io.StringIO()
    yaml.dump(document, text)
    parse(text.getvalue(), path.name)
    temporary = path.with_suffix(".yaml.tmp")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)
