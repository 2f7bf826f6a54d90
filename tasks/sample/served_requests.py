"""Requests as the served model reads them, and the models that answer them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import paths
from tasks.config.params import validation_sentence
from tasks.sample.motion_requests import Animator, MotionRequest
from tasks.sample.requests import Artist, Request
from tasks.sample.video_requests import Filmmaker, VideoRequest

PICTURE, MOTION, VIDEO = "picture", "motion", "video"
AnyRequest = Request | MotionRequest | VideoRequest
REQUESTS: dict[str, type[AnyRequest]] = {PICTURE: Request, MOTION: MotionRequest, VIDEO: VideoRequest}


class Body(BaseModel):
    """A request as MLflow reads it: `kind` (picture, motion or video), and the keys of `Request`, `MotionRequest` and
    `VideoRequest` with the types that MLflow's signatures know. Its values are not checked; `request` does that."""

    model_config = ConfigDict(extra="forbid")

    kind: str = PICTURE
    category: str | None = None
    prompt: str | None = None
    pose: dict[str, list[float]] | None = None
    velocity: list[float] | None = None
    seconds: float | None = None
    turn: float | None = None
    lock_feet: bool | None = None
    count: int = 1
    sampler: str | None = None
    steps: int | None = None
    timesteps: str | None = None
    start: Any = None
    guidance: Any = None
    options: Any = None
    seed: int = 0

    def request(self) -> AnyRequest:
        """The request. Raises ValueError with a sentence if a value is not allowed."""
        if self.kind not in REQUESTS:
            raise ValueError(f"request: kind must be {PICTURE}, {MOTION} or {VIDEO}, not {self.kind!r}")
        given = {key: value for key, value in self.model_dump(exclude={"kind"}).items() if value is not None}
        try:
            return REQUESTS[self.kind].model_validate(given)
        except ValidationError as error:
            raise ValueError(validation_sentence(dict(error.errors()[0]), "request", given)) from error


class Studio:
    """The models in folders (name -> folder): answers requests for what they can make."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.artist = self.animator = self.filmmaker = None
        if set(paths.MODELS) <= set(folders):
            self.artist = Artist(
                folders["poses"],
                folders["pictures"],
                upscaler=folders.get(paths.UPSCALER),
                classifier=folders.get(paths.classifier("pictures")),
            )
        if paths.MOTION in folders:
            self.animator = Animator(folders[paths.MOTION])
        if self.animator is not None and paths.VIDEO in folders:
            self.filmmaker = Filmmaker(folders[paths.VIDEO], self.animator)

    def answer(self, body: Body) -> list[dict[str, Any]]:
        """The requested samples. Raises ValueError if the request is invalid or no model here can answer it."""
        request = body.request()
        if isinstance(request, VideoRequest):
            if self.filmmaker is None:
                raise ValueError(
                    "request: kind: clips need a model of video and one of motion, which are not both here"
                )
            return self.filmmaker.answer(request)
        if isinstance(request, MotionRequest):
            if self.animator is None:
                raise ValueError("request: kind: there is no model of motion here, only of pictures")
            return self.animator.answer(request)
        if self.artist is None:
            raise ValueError("request: kind: there is no model of pictures here, only of motion")
        return self.artist.answer(request)
