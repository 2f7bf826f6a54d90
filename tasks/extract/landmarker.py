"""MediaPipe's PoseLandmarker: finds persons in a picture. The only module that runs mediapipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from zipfile import BadZipFile

import numpy as np

from tasks.common.errors import UserError
from tasks.extract.centred import bundle as centred_bundle
from tasks.extract.native_log import native_log_set_aside
from tasks.extract.pose_bundle import check


@contextmanager
def _stubbed(*names: str) -> Iterator[None]:
    """Replace these modules by empty ones for imports in the `with` block, unless they are imported already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update({name: ModuleType(name) for name in absent})
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


# mediapipe imports these for drawing, plotting and audio; they take most of its import time.
with _stubbed("matplotlib", "matplotlib.pyplot", "cv2", "sounddevice"):
    import mediapipe
    from mediapipe.tasks.python import BaseOptions, vision


@dataclass(frozen=True)
class Person:
    """One person found in a picture.

    `landmarks`: float32 `[33, 5]`: x as a fraction of the picture's width, y of its height, z (depth: smaller is nearer,
    hips at 0) in roughly the scale of x, visibility and presence in 0..1.
    `world`: float32 `[33, 3]`: metres, origin in the middle of the hips, axes as in `tasks.common.skeleton`.
    """

    landmarks: np.ndarray
    world: np.ndarray


@contextmanager
def kept_offline() -> Iterator[None]:
    """Keep this process and its children from reaching any https server. For processes that only run a Landmarker.

    mediapipe 1.x reports its use to play.googleapis.com now and then and when a task is closed, and this cannot be switched
    off (google-ai-edge/mediapipe#6291). Its client obeys the proxy variables, and nothing listens on the local discard port.
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
    """Finds persons in single pictures (IMAGE mode: a result depends on its picture alone).

    With `video` it processes the frames of one video in order (VIDEO mode: a result depends on the frames before it).
    `min_confidence` in 0..1 is the threshold of detection, landmark presence and tracking; at most `num_poses` persons are
    returned. With `centred` there is no detection: the pictures are squares that show one person, upright, the hips in the
    middle (see `tasks.extract.centred`). A context manager. Raises UserError if the model is missing or is not a pose bundle.
    """

    def __init__(
        self,
        model: Path,
        min_confidence: float = 0.5,
        num_poses: int = 1,
        video: bool = False,
        centred: bool = False,
    ) -> None:
        check(model)
        self._video = video
        try:
            content = (
                BaseOptions(model_asset_buffer=centred_bundle(model))
                if centred
                else BaseOptions(model_asset_path=str(model.resolve()))
            )
            options = vision.PoseLandmarkerOptions(
                base_options=content,
                running_mode=vision.RunningMode.VIDEO if video else vision.RunningMode.IMAGE,
                num_poses=num_poses,
                min_pose_detection_confidence=min_confidence,
                min_pose_presence_confidence=min_confidence,
                min_tracking_confidence=min_confidence,
            )
            with native_log_set_aside():
                self._task = vision.PoseLandmarker.create_from_options(options)
        except (ValueError, RuntimeError, OSError, IndexError, BadZipFile) as error:  # of mediapipe or `centred_bundle`
            raise UserError(f"{model} cannot be used as a pose model: {str(error).splitlines()[0]}") from error

    def detect(self, picture: np.ndarray, milliseconds: int = 0) -> list[Person]:
        """The persons in an RGB picture, uint8 `[height, width, 3]`.

        For a video, `milliseconds` is the frame's time; it must increase from frame to frame.
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
