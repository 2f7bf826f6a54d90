"""Requests for motion and their answers, as the served model and the command `generate` use them."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field

from diffusion_core.conditioning import Cond
from tasks import paths
from tasks.common import checkpoint, foot_lock, motion
from tasks.config.motion import MotionModel
from tasks.config.params import check_sampling
from tasks.config.sampling import SamplingChoices
from tasks.models import modality, model_file, motion_control
from tasks.models.modality import Model
from tasks.models.motion import first_pose_map, path_map
from tasks.models.motion_control import Plan
from tasks.models.sampler import Sampler
from tasks.plots import motion_plots
from tasks.sample import given_joints, motion_skeleton
from tasks.sample.given_joints import Joints

MAX_COUNT = 64  # motions in one answer
MAX_SECONDS = 60.0
OVERLAP = 1 / 3  # of a clip: what two windows of a longer motion share
PICTURE = 192  # pixels of the looping pictures


class MotionRequest(SamplingChoices):
    """A request for motion. Every key has a default."""

    model_config = ConfigDict(strict=False)  # whole numbers may come as floats

    category: str | None = None  # the movement; None: any
    # Joint name -> x, y, z in the first frame (hips at the origin, torso 1 long, y down, facing forward). The model fills in
    # joints that are not given.
    pose: Joints | None = None
    # Of the hips, x, y, z in torso lengths per second, with the axes of the joints: forward is -z. None: sampled.
    velocity: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    seconds: float | None = Field(default=None, gt=0, le=MAX_SECONDS)  # None: as long as a training clip
    lock_feet: bool = False  # whether standing feet are held in place afterwards, see `tasks.common.foot_lock`
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    seed: int = Field(default=0, ge=0, lt=2**31)


@dataclass(frozen=True)
class Motions:
    """Motion float32 `[n, frames, 33, 3]` in the form of `tasks.common.motion`, and its frames per second."""

    clips: np.ndarray
    rate: float


class Animator:
    """The motion model in a folder: samples motion on request."""

    def __init__(
        self, folder: Path, prepare: Callable[[Model, SamplingChoices], Sampler] = Sampler, strength: float = 1.0
    ) -> None:
        self._folder, self.prepare, self.strength = folder, prepare, strength
        self._about = checkpoint.about(folder / paths.MODEL_FILE)
        self._loaded: Model | None = None

    @property
    def categories(self) -> list[str]:
        """The movements that can be asked for."""
        known: list[str] = self._about["categories"]
        return known

    @property
    def model(self) -> Model:
        """The model, loaded when it is first needed."""
        if self._loaded is None:
            self._loaded = model_file.load(self._folder, modality.device())
        return self._loaded

    def samples(self, request: MotionRequest, ids: torch.Tensor) -> Motions:
        """The motions with these numbers. Each is a function of the request and its number alone.

        A motion that is longer than a training clip is made window by window (`motion_control.long`).

        Raises ValueError if the model does not know the category or cannot be asked for this, DataError if a sample is not
        finite.
        """
        model = self.model
        if request.category is not None and request.category not in self.categories:
            known = ", ".join(self.categories)
            raise ValueError(f"there is no category {request.category!r}; there are {known}")
        config = model.config
        assert isinstance(config, MotionModel) and model.clip is not None
        if request.velocity is not None and "path" not in config.conditions:
            raise ValueError("the motion model was trained without the condition path, so it takes no velocity")
        how = model.fitting(request)
        check_sampling("motion.model", config, how)
        frames, rate = model.clip
        wanted = frames if request.seconds is None else max(2, math.ceil(request.seconds * rate))
        cond = model.conditions([request.category] * len(ids))
        if request.velocity is not None:
            cond |= path_map(_straight(request.velocity, frames, rate, len(ids)))
        clips = self._first_window(request, how, cond, ids)
        if wanted > frames:
            overlap = max(2, round(OVERLAP * frames))
            windows = 1 + math.ceil((wanted - frames) / (frames - overlap))

            def same(window: int) -> Cond:
                return cond

            plan = Plan(how, request.seed)
            clips = motion_control.long(model, windows, overlap, same, ids, plan, self.strength, clips)
        clips = clips[:, :wanted].astype(np.float32)
        return Motions(foot_lock.locked(clips, rate) if request.lock_feet else clips, rate)

    def _first_window(self, request: MotionRequest, how: SamplingChoices, cond: Cond, ids: torch.Tensor) -> np.ndarray:
        """Motion of the length of a clip, with the given joints in its first frame."""
        model = self.model
        pose = given_joints.as_tensor(request.pose)
        if pose is None:
            return motion.from_features(self.prepare(model, how).draw(cond, request.seed, ids).numpy())
        assert isinstance(model.config, MotionModel)
        first = _first_frame(pose.numpy())
        if np.isfinite(first).all() and "first_pose" in model.config.conditions:
            told = torch.from_numpy(first).float().expand(len(ids), -1, -1)
            cond = {**cond, **first_pose_map(told, model.shape[0])}
        known = np.full((len(ids), *model.shape), np.nan)
        known[:, 0] = first
        return motion_control.given(model, known, cond, ids, Plan(how, request.seed))

    def answer(self, request: MotionRequest) -> list[dict[str, Any]]:
        """For each motion: `landmarks` (frames times 33 times x, y, z), `rate`, `bvh` (text), `webp` (base64, a looping
        picture), `category`, `seed` and `number`."""
        motions = self.samples(request, torch.arange(request.count))
        return [
            {
                "landmarks": np.round(clip, 5).tolist(),
                "rate": motions.rate,
                "bvh": motion_skeleton.bvh(motion_skeleton.fit(motion_skeleton.grounded(clip)), motions.rate),
                "webp": base64.b64encode(motion_plots.looping(clip[None], motions.rate, 1, size=PICTURE)).decode(),
                "category": request.category,
                "seed": request.seed,
                "number": number,
            }
            for number, clip in enumerate(motions.clips)
        ]


def _straight(velocity: list[float], frames: int, rate: float, count: int) -> torch.Tensor:
    """The path of hips that move with constant velocity, as the features hold it: `[count, frames, 3]`."""
    times = torch.arange(frames)[:, None] / rate
    return (motion.PATH_SCALE * times * torch.tensor(velocity)).expand(count, -1, -1)


def _first_frame(pose: np.ndarray) -> np.ndarray:
    """The features `[33, 3]` of a pose with the hips at 0, NaN for joints that are not given. A whole pose is turned to face
    forward; one hip tells where the other is."""
    if np.isfinite(pose).all():
        whole: np.ndarray = motion.features(motion.canonical(pose[None, None])[0, 0])
        return whole
    features = pose.copy()
    left, right = pose[motion.LEFT_HIP], pose[motion.RIGHT_HIP]
    features[motion.LEFT_HIP] = (
        (left - right) / 2 if np.isfinite(left + right).all() else np.where(np.isfinite(left), left, -right)
    )
    features[motion.PATH] = 0
    return features
