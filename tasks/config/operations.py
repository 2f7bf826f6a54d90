"""Living with it: services, retrain, generate, notify. None of them changes what a stage of the graph makes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.config.section import Positive, Section, Seed

Port = Annotated[int, Field(ge=1024, le=65535)]


class Services(Section):
    """What `make up` starts; all of it listens on 127.0.0.1."""

    prefect_port: Port = 4200
    mlflow_port: Port = 5000
    prefect_database: str | None = Field(
        default=None, pattern=r"^(postgresql\+asyncpg|sqlite\+aiosqlite)://"
    )  # null: sqlite


class Limits(Section):
    """What a run may take."""

    hours: float | None = Field(default=None, gt=0)  # then its stage is stopped and the run ends as TimedOut; null: any


class Retrain(Section):
    """When new data arrive."""

    warm_start: bool = True  # begin with the champion's weights; false: train anew
    watch_seconds: float = Field(default=30.0, ge=0)  # how often `make up` looks for new data; 0: never
    worse_category: float = Field(
        default=0.5, ge=0
    )  # a category's distance may grow by this share of the champion's at most


class Generate(Section):
    """Samples on demand, of which only those are kept that show what was asked for."""

    alias: Literal["champion", "challenger", "previous"] = "champion"  # of the registered models
    count: Positive = 64  # to be kept
    category: str | None = None  # null: all in turn
    # joints by name -> x, y, z (hips at the origin, torso 1 long, y down); those not given are drawn; null: all are
    pose: dict[str, list[float]] | None = None
    steps: int = Field(default=18, ge=1, le=1000)
    guidance: float = Field(default=2.0, ge=0, le=100)  # of the pictures; 1: none
    seed: Seed = 0
    near: float = Field(default=0.3, gt=0)  # torso lengths in the picture's plane: a joint this near is right
    pck: float = Field(default=0.75, gt=0, le=1)  # share of the 12 limb joints that must be right
    min_acceptance: float = Field(default=0.1, gt=0, le=1)  # below it the run stops


class Notify(Section):
    """Who is told that a model was promoted or refused, or that a run failed."""

    webhook: str | None = Field(default=None, pattern=r"^https?://")  # gets a POST with JSON
