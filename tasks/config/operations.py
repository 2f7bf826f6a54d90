"""The sections of operations: services, engine, limits, retrain, generate, notify. None changes the output of a stage."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from tasks.config.addresses import is_web_address
from tasks.config.sampling import GuidanceOrScale, SamplingChoices
from tasks.config.section import Positive, Section, Seed

MOST_SLICES = 10_000  # each is a task of Ray
SlicedStage = Literal[
    "extract", "curate", "sample_poses", "sample_pictures", "sample_motion", "sample_video", "pose_accuracy", "memorization",
    "fidelity", "generate",
]  # fmt: skip
Port = Annotated[int, Field(ge=1024, le=65535)]


class Services(Section):
    """The services that `make up` starts; all listen on 127.0.0.1."""

    prefect_port: Port = 4200
    mlflow_port: Port = 5000
    # null: SQLite
    prefect_database: str | None = Field(default=None, pattern=r"^(postgresql\+asyncpg|sqlite\+aiosqlite)://")

    @model_validator(mode="after")
    def _ports_differ(self) -> Services:
        if self.prefect_port == self.mlflow_port:
            raise ValueError(f"prefect_port and mlflow_port must differ, both are {self.mlflow_port}")
        return self


class Engine(Section):
    """What runs the slices of parts and stages."""

    kind: Literal["local", "prefect", "ray"] = "local"
    # What is done in slices.
    stages: list[SlicedStage] = Field(default_factory=lambda: list(get_args(SlicedStage)))
    # That a part or a stage is cut into; 0: of a part one for every thousand files, of a stage 8, or with `local` none.
    slices: int = Field(default=0, ge=0, le=MOST_SLICES)
    # Of the Ray cluster; null: a cluster on this machine, started for the run.
    address: str | None = Field(default=None, pattern=r"^(auto|(ray://)?[^/\s:]+:\d{1,5})$")

    # Flow runs of Prefect that share the slices; 0: one for each worker that is online.
    runs: int = Field(default=0, ge=0, le=MOST_SLICES)

    @model_validator(mode="after")
    def _options_are_of_the_kind(self) -> Engine:
        if self.address is not None and self.kind != "ray":
            raise ValueError(f"address is for kind: ray, but kind is {self.kind}")
        if self.runs and self.kind != "prefect":
            raise ValueError(f"runs is for kind: prefect, but kind is {self.kind}")
        return self


class Store(Section):
    """An object store for trainings on machines that come and go."""

    # Where the states of unfinished trainings are copied to and fetched from: s3://BUCKET/PREFIX, or a folder.
    checkpoints: str | None = Field(default=None, min_length=1)
    endpoint: str | None = None  # of stores other than Amazon's

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, endpoint: str | None) -> str | None:
        if endpoint is not None and not is_web_address(endpoint):
            raise ValueError(f"{endpoint!r} is no address such as https://store.example.org")
        return endpoint


class Limits(Section):
    """Limits of a run."""

    # A run that takes longer is stopped and ends as TimedOut; null: no limit.
    hours: float | None = Field(default=None, gt=0)


class Retrain(Section):
    """Retraining when new data arrive."""

    warm_start: bool = True  # start with the champion's weights; false: from the beginning
    watch_seconds: float = Field(default=30.0, ge=0)  # how often `make up` looks for new data; 0: never
    # The distance of a category may exceed the champion's by at most this share of it.
    worse_category: float = Field(default=0.5, ge=0)


class Generate(SamplingChoices):
    """Samples on demand: pictures, of which only those that show the requested pose are kept, motion, or clips of pictures.

    Sampler, steps and timesteps are those of poses and pictures; guidance and start are those of the picture model. Motion is
    sampled as `motion.sample` says, clips as `video.sample` says.
    """

    kind: Literal["picture", "motion", "video"] = "picture"

    alias: Literal["champion", "challenger", "previous"] = "champion"  # of the registered models
    count: Positive = 64  # samples to keep
    category: str | None = None  # null: all in turn
    prompt: str | None = Field(default=None, min_length=1)  # of the pictures, for models with text
    # Joint name -> x, y, z (hips at the origin, torso 1 long, y down). Joints that are not given are sampled; null: all.
    # Of motion it is the pose in the first frame.
    pose: dict[str, list[float]] | None = None
    # Of motion, the velocity of the hips: x, y, z in torso lengths per second; null: sampled.
    velocity: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    seconds: float | None = Field(default=None, gt=0, le=60)  # of motion; null: as long as a training clip
    lock_feet: bool = False  # whether standing feet of motion are held in place afterwards
    turn: float = Field(default=0.0, ge=-180, le=180)  # of clips: degrees by which the person is turned to their left
    guidance: GuidanceOrScale = 2.0  # of the pictures; 1: none
    seed: Seed = 0
    near: float = Field(default=0.25, gt=0)  # torso lengths in the image plane: a joint this near is correct
    pck: float = Field(default=0.75, gt=0, le=1)  # share of the 12 limb joints that must be correct
    recognised: bool = False  # also ask that the recogniser names the requested category, see tasks.recognise
    min_acceptance: float = Field(default=0.1, gt=0, le=1)  # share of kept samples below which the run stops


class Notify(Section):
    """Notification when a model is promoted or refused, or when a run fails."""

    webhook: str | None = None  # receives a POST with JSON

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, webhook: str | None) -> str | None:
        if webhook is not None and not is_web_address(webhook):
            raise ValueError(f"{webhook!r} is no address such as https://example.org/hook")
        return webhook
