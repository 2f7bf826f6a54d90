"""Requests for clips of pictures and their answers, as the served model and the command `generate` use them.

The motion model makes a motion, and the video model draws it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field

from tasks import paths
from tasks.common import checkpoint, motion
from tasks.config.params import check_sampling
from tasks.config.sampling import Guidance, GuidanceOrScale, SamplingChoices
from tasks.config.video import VideoModel
from tasks.models import inputs, modality, model_file
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.plots import drawing, video_plots
from tasks.sample.given_joints import Joints
from tasks.sample.motion_requests import Animator, MotionRequest

MAX_COUNT = 64  # clips in one answer
PICTURE = 192  # pixels of the looping pictures


class VideoRequest(SamplingChoices):
    """A request for clips of pictures. Every key has a default. Sampler, guidance and start are those of the pictures."""

    model_config = ConfigDict(strict=False)  # whole numbers may come as floats

    category: str | None = None  # the movement; None: any
    pose: Joints | None = None  # of the first frame, see `MotionRequest`
    velocity: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None  # see `MotionRequest`
    # Degrees by which the person is turned to their left; at 0 they face the camera in the first frame.
    turn: float = Field(default=0.0, ge=-180, le=180)
    count: int = Field(default=1, ge=1, le=MAX_COUNT)
    guidance: GuidanceOrScale = Guidance(scale=3.0, rescale=0.7)  # 1: none
    seed: int = Field(default=0, ge=0, lt=2**31)


@dataclass(frozen=True)
class Videos:
    """Pictures uint8 `[n, frames, size, size, 3]`, the poses in them, float32 `[n, frames, 33, 3]`, and frames a second."""

    pictures: np.ndarray
    clips: np.ndarray
    rate: float


class Filmmaker:
    """The video model in a folder, and the motion model that it draws: samples clips of pictures on request.

    `moving`: how the motion model is sampled.
    """

    def __init__(
        self,
        folder: Path,
        animator: Animator,
        prepare: Callable[[Model, SamplingChoices], Sampler] = Sampler,
        moving: SamplingChoices | None = None,
    ) -> None:
        self._folder, self.animator, self.prepare = folder, animator, prepare
        self.moving = moving or SamplingChoices()
        self._about = checkpoint.about(folder / paths.MODEL_FILE)
        self._loaded: Model | None = None

    @property
    def model(self) -> Model:
        """The video model, loaded when it is first needed."""
        if self._loaded is None:
            self._loaded = model_file.load(self._folder, modality.device())
        return self._loaded

    @property
    def margin(self) -> float:
        """The margin around a person in the pictures."""
        return float(self._about["margin"])

    def samples(self, request: VideoRequest, ids: torch.Tensor) -> Videos:
        """The clips with these numbers. Each is a function of the request and its number alone.

        Raises ValueError if the models do not know the category or cannot be asked for this, DataError if a sample is not
        finite.
        """
        model = self.model
        config = model.config
        assert isinstance(config, VideoModel) and model.clip is not None
        how = model.fitting(request)
        check_sampling("video.model", config, how)
        frames, rate = model.clip
        motions = self.animator.samples(self._motion(request, (frames - 1) / rate), ids)
        times = np.arange(motions.clips.shape[1]) / motions.rate
        at = np.minimum(np.arange(frames) / rate, times[-1])
        cut = np.stack([motion.resampled(clip, times, at) for clip in motions.clips])
        placed = cut - motion.middle_of_hips(cut[:, 0])[:, None, None]
        clips = motion.turned(placed, np.full(len(cut), -np.radians(request.turn))).astype(np.float32)
        cond = model.conditions([request.category] * len(ids), clips)
        pictures = inputs.as_clips(self.prepare(model, how).draw(cond, request.seed, ids))
        return Videos(pictures, clips, rate)

    def _motion(self, request: VideoRequest, seconds: float) -> MotionRequest:
        """The request for the motion, which lasts at least so long."""
        given = request.model_dump(include={"category", "pose", "velocity", "seed"})
        how = {key: getattr(self.moving, key) for key in SamplingChoices.model_fields}
        longer = self.animator.model.clip
        assert longer is not None
        return MotionRequest(**given, **how, seconds=seconds + 1 / longer.rate)

    def answer(self, request: VideoRequest) -> list[dict[str, Any]]:
        """For each clip: `webp` (base64, a looping picture), `landmarks` (frames times 33 times x, y, z), `rate`, `category`,
        `seed` and `number`."""
        made = self.samples(request, torch.arange(request.count))
        return [
            {
                "webp": base64.b64encode(looping(pictures, made.rate)).decode(),
                "landmarks": np.round(clip, 5).tolist(),
                "rate": made.rate,
                "category": request.category,
                "seed": request.seed,
                "number": number,
            }
            for number, (pictures, clip) in enumerate(zip(made.pictures, made.clips, strict=True))
        ]


def looping(pictures: np.ndarray, rate: float) -> bytes:
    """A clip `[frames, size, size, 3]` as an animated WebP."""
    return video_plots.looping([drawing.smooth(picture, max(PICTURE, len(picture))) for picture in pictures], rate)
