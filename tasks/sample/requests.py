"""Requests for samples and their answers, as the served model and the command `generate` use them."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator

from tasks.common.images import encode_png
from tasks.common.skeleton import INDEX
from tasks.models import modality, sampler
from tasks.models.modality import Model

MAX_COUNT = 256  # samples in one answer


class Request(BaseModel):
    """A request for samples. Every key has a default."""

    model_config = ConfigDict(extra="forbid")

    category: str | None = None  # None: any
    # Joint name -> x, y, z (hips at the origin, torso 1 long, y down). The pose model fills in joints that are not given.
    pose: dict[str, list[float]] | None = None
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    steps: int = Field(default=18, ge=1, le=1000)
    guidance: float = Field(default=2.0, ge=0, le=100)  # of the pictures; 1: none
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("pose")
    @classmethod
    def _joints(cls, pose: dict[str, list[float]] | None) -> dict[str, list[float]] | None:
        for name, place in (pose or {}).items():
            if name not in INDEX:
                raise ValueError(f"there is no joint {name!r}; there are {', '.join(INDEX)}")
            if len(place) != 3 or not np.isfinite(place).all():
                raise ValueError(f"the joint {name!r} needs three finite numbers")
        return pose

    def joints(self) -> torch.Tensor | None:
        """The pose float64 `[33, 3]`, NaN for joints that are not given; None if no joint is given."""
        if not self.pose:
            return None
        pose = torch.full((len(INDEX), 3), torch.nan, dtype=torch.float64)
        for name, place in self.pose.items():
            pose[INDEX[name]] = torch.tensor(place, dtype=torch.float64)
        return pose


@dataclass(frozen=True)
class Samples:
    """Poses float32 `[n, 33, 3]` and pictures of them, uint8 `[n, s, s, 3]`."""

    poses: np.ndarray
    pictures: np.ndarray


class Artist:
    """The pose model and the picture model: samples poses, then a picture of each."""

    def __init__(self, poses: Path, pictures: Path) -> None:
        self.poses: Model = modality.load(poses, modality.device())
        self.pictures: Model = modality.load(pictures, modality.device())

    def samples(self, request: Request, ids: torch.Tensor) -> Samples:
        """The samples with these numbers. Each is a function of the request and its number alone.

        Raises ValueError if the models do not know the category, DataError if a sample is not finite.
        """
        if request.category is not None and request.category not in self.poses.categories:
            known = ", ".join(self.poses.categories)
            raise ValueError(f"there is no category {request.category!r}; there are {known}")
        categories = [request.category] * len(ids)
        joints = request.joints()
        if joints is not None and joints.isfinite().all():
            poses = joints.float().expand(len(ids), -1, -1).numpy()
        else:
            cond = self.poses.conditions(categories)
            drawn = sampler.draw(self.poses, cond, request.steps, 1.0, request.seed, ids, joints=joints)
            poses = drawn.numpy()
        cond = self.pictures.conditions(categories, poses)
        drawn = sampler.draw(self.pictures, cond, request.steps, request.guidance, request.seed, ids)
        return Samples(poses, modality.as_pictures(drawn))

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """For each sample: `png` (base64), `landmarks` (33 times x, y, z), `category`, `seed` and `number`."""
        samples = self.samples(request, torch.arange(request.count))
        return [
            {
                "png": base64.b64encode(encode_png(picture)).decode(),
                "landmarks": pose.tolist(),
                "category": request.category,
                "seed": request.seed,
                "number": number,
            }
            for number, (pose, picture) in enumerate(zip(samples.poses, samples.pictures, strict=True))
        ]
