"""Requests for pictures by a published model with an adapter, as `mlflow models serve` answers them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from diffusion_core.conditioning import Cond, rows
from tasks.common.errors import UserError
from tasks.common.images import encode_png
from tasks.config.params import validation_sentence
from tasks.config.sampling import SamplingChoices
from tasks.extract.decode import decode
from tasks.extract.source_files import Refusal
from tasks.foreign import control, draw
from tasks.models.inputs import as_pictures

MAX_COUNT = 64  # pictures in one answer
KEPT = 64  # prompts whose embeddings are kept: the text encoders are loaded for new ones only
HOW = {"sampler": "dpmpp_2m", "steps": 25, "guidance": 7.5}  # as `contrapposto draw`


class Body(BaseModel):
    """A request as MLflow reads it, with the types that its signatures know. `request` checks the values."""

    model_config = ConfigDict(extra="forbid")

    prompt: str
    negative: str | None = None
    pose: str | None = None
    count: int = 1
    size: int | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0

    def request(self) -> Request:
        """The request. Raises ValueError with a sentence if a value is not allowed."""
        given = {key: value for key, value in self.model_dump().items() if value is not None}
        how = {key: given.pop(key, default) for key, default in HOW.items()}
        try:
            return Request(**given, how=SamplingChoices.model_validate(how))
        except ValidationError as error:
            raise ValueError(validation_sentence(dict(error.errors()[0]), "request", given | how)) from error


class Request(BaseModel):
    """What to draw. `pose`: for a ControlNet, the PNG of a pose in base64. `size`: pixels; None: as the model was trained."""

    prompt: str = Field(min_length=1)
    negative: str | None = Field(None, min_length=1)
    pose: str | None = None
    count: int = Field(1, ge=1, le=MAX_COUNT)
    size: int | None = Field(None, ge=8)
    how: SamplingChoices
    seed: int = Field(0, ge=0, lt=2**31)


class Painter:
    """A published model with an adapter, both in folders, in memory: answers requests. Its text encoders come and go."""

    def __init__(self, base: Path, adapter: Path) -> None:
        self.model = draw.adapted(adapter, draw.load(base, None))
        self.embeddings: dict[str, Cond] = {}

    def answer(self, body: Body) -> list[dict[str, Any]]:
        """Pictures as PNG in base64, each with its number. Picture i is a function of the request, without `count`, and i.

        Raises ValueError if the request is invalid, or if the model cannot draw in this way.
        """
        request = body.request()
        size = request.size or self.model.size
        try:
            self.model.walk(request.how, self.model.shape(size))
            self._embed([request.prompt, *([request.negative] if request.negative else [])])
            cond = rows(self.embeddings[request.prompt], torch.zeros(request.count, dtype=torch.int64))
            if request.pose is not None:
                cond[control.POSE] = self._pose(request.pose, size).expand(request.count, -1, -1, -1)
            unwanted = self.embeddings[request.negative] if request.negative else None
            values = self.model.draw(cond, request.how, request.seed, torch.arange(request.count), size, unwanted)
        except UserError as error:
            raise ValueError(f"request: {error}") from error
        return [
            {
                "png": base64.b64encode(encode_png(picture)).decode(),
                "prompt": request.prompt,
                "seed": request.seed,
                "number": i,
            }
            for i, picture in enumerate(as_pictures(values))
        ]

    def _embed(self, prompts: list[str]) -> None:
        """Embed the prompts that are new, and forget the oldest ones."""
        new = [prompt for prompt in prompts if prompt not in self.embeddings]
        if new:
            encoded = self.model.conditions(new)
            self.embeddings |= {prompt: rows(encoded, slice(i, i + 1)) for i, prompt in enumerate(new)}
        for old in list(self.embeddings)[: max(0, len(self.embeddings) - KEPT)]:
            if old not in prompts:
                del self.embeddings[old]

    def _pose(self, png: str, size: int) -> Tensor:
        if not isinstance(self.model.denoiser.net, control.Controlled):
            raise UserError("pose needs a ControlNet, and this adapter is none")
        try:
            return draw.as_condition(decode(io.BytesIO(base64.b64decode(png, validate=True))), size)
        except (ValueError, Refusal) as error:
            raise UserError("pose is no picture in base64") from error
