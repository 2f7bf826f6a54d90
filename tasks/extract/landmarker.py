"""MediaPipe's PoseLandmarker as a function from a picture to persons. The only module that runs mediapipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np

from tasks.common.errors import UserError
from tasks.extract.native_log import native_log_set_aside
from tasks.extract.pose_bundle import check


@contextmanager
def _left_out(*names: str) -> Iterator[None]:
    """Imports of these modules inside get empty ones, unless they are there already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# What mediapipe imports to draw, to plot and to listen: most of the time that its import takes.
with _left_out("matplotlib", "matplotlib.pyplot", "cv2", "sounddevice"):
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision


@dataclass(frozen=True)
class Person:
    """One person found in a picture.

    `landmarks`: float32 `[33, 5]`: x in parts of the picture's width, y in parts of its height, z (depth, smaller is
    nearer, hips at 0) in about the scale of x, visibility and presence in 0..1.
    `world`: float32 `[33, 3]`: metres, the middle of the hips at the origin, axes as in `tasks.common.skeleton`.
    """

    landmarks: np.ndarray
    world: np.ndarray


@contextmanager
def kept_offline() -> Iterator[None]:
    """Within, this process and children it starts reach no https server; for one that runs nothing but a Landmarker.

    mediapipe 1.x reports its use to play.googleapis.com when a task is closed and from time to time before, and has
    no switch for it (google-ai-edge/mediapipe#6291). Its client obeys the proxy variables, and nobody listens at the
    discard port of this machine.
    """
    names = ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY")
    before = {name: value for name in names if (value := os.environ.pop(name, None)) is not None}
    os.environ["https_proxy"] = "http://127.0.0.1:9"
    try:
        yield
    finally:
        del os.environ["https_proxy"]
        os.environ.update(before)


class Landmarker:
    """Finds persons in single pictures (the task's IMAGE mode, in which a result depends on its picture alone).

    With `video` it is the VIDEO mode: for the frames of one video, in order; each result depends on those before.
    `min_confidence` in 0..1 is asked of the detection, of the presence of landmarks and of tracking; at most
    `num_poses` persons are returned. A context manager. Raises UserError if the model is missing or is not a pose bundle.
    """

    def __init__(self, model: Path, min_confidence: float = 0.5, num_poses: int = 1, video: bool = False) -> None:
        check(model)
        self._video = video
        options = vision.PoseLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model.resolve())),
            running_mode=vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE,
            num_poses=num_poses,
            min_pose_detection_confidence=min_confidence,
            min_pose_presence_confidence=min_confidence,
            min_tracking_confidence=min_confidence,
        )
        try:
            with native_log_set_aside():
                self._task = vision.PoseLandmarker.create_from_options(options)
        except (ValueError, RuntimeError, OSError, IndexError) as error:  # what a status can become
            raise UserError(f"{model} cannot be used as a pose model: {str(error).splitlines()[0]}") from error

    def detect(self, picture: np.ndarray, milliseconds: int = 0) -> list[Person]:
        """The persons in an RGB picture, uint8 `[height, width, 3]`; an empty list if there are none.

        For a video, `milliseconds` is the frame's time and must grow from frame to frame.
        """
        image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(picture))
        with native_log_set_aside():
            result = self._task.detect_for_video(image, milliseconds) if self._video else self._task.detect(image)
        return [
            Person(
                landmarks=np.array([(p.x, p.y, p.z, p.visibility, p.presence) for p in landmarks], dtype=np.float32),
                world=np.array([(p.x, p.y, p.z) for p in world], dtype=np.float32),
            )
            for landmarks, world in zip(result.pose_landmarks, result.pose_world_landmarks, strict=True)
        ]

    def close(self) -> None:
        """Free the native task; closing twice is allowed."""
        with native_log_set_aside():
            self._task.close()

    def __enter__(self) -> Landmarker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
