"""MediaPipe's PoseLandmarker as a function from a picture to persons. The only module that runs mediapipe."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import mediapipe
import numpy as np
from mediapipe.tasks.python import BaseOptions, vision

from tasks.errors import UserError

# What a pose bundle holds: the person detector and the landmark regressor.
_MEMBERS = {"pose_detector.tflite", "pose_landmarks_detector.tflite"}


@dataclass(frozen=True)
class Person:
    """One person found in a picture.

    `landmarks`: float32 `[33, 5]`: x in parts of the picture's width, y in parts of its height, z (depth, smaller is
    nearer, hips at 0) in about the scale of x, visibility and presence in 0..1.
    `world`: float32 `[33, 3]`: metres, the middle of the hips at the origin, axes as in `tasks.skeleton`.
    """

    landmarks: np.ndarray
    world: np.ndarray


class Landmarker:
    """Finds persons in single pictures (the task's IMAGE mode, in which a result depends on its picture alone).

    `min_confidence` in 0..1 is asked of the detection and of the presence of landmarks; at most `num_poses` persons
    are returned. A context manager. Raises UserError if the model is missing or is not a pose bundle.
    """

    def __init__(self, model: Path, min_confidence: float = 0.5, num_poses: int = 1) -> None:
        _check_bundle(model)
        options = vision.PoseLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(model.resolve())),
            num_poses=num_poses,
            min_pose_detection_confidence=min_confidence,
            min_pose_presence_confidence=min_confidence,
            min_tracking_confidence=min_confidence,
        )
        try:
            with _native_log_set_aside():
                self._task = vision.PoseLandmarker.create_from_options(options)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{model} cannot be used as a pose model: {str(error).splitlines()[0]}") from error

    def detect(self, picture: np.ndarray) -> list[Person]:
        """The persons in an RGB picture, uint8 `[height, width, 3]`; an empty list if there are none."""
        image = mediapipe.Image(mediapipe.ImageFormat.SRGB, np.ascontiguousarray(picture))
        with _native_log_set_aside():
            result = self._task.detect(image)
        return [
            Person(
                landmarks=np.array([(p.x, p.y, p.z, p.visibility, p.presence) for p in landmarks], dtype=np.float32),
                world=np.array([(p.x, p.y, p.z) for p in world], dtype=np.float32),
            )
            for landmarks, world in zip(result.pose_landmarks, result.pose_world_landmarks, strict=True)
        ]

    def close(self) -> None:
        """Free the native task; closing twice is allowed."""
        with _native_log_set_aside():
            self._task.close()

    def __enter__(self) -> Landmarker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_bundle(model: Path) -> None:
    if not model.is_file():
        raise UserError(f"The pose model {model} does not exist; `make setup` builds the default one.")
    if not zipfile.is_zipfile(model):
        raise UserError(f"{model} is not a pose model: a .task bundle is a zip file, this is not.")
    with zipfile.ZipFile(model) as bundle:
        missing = _MEMBERS - set(bundle.namelist())
    if missing:
        raise UserError(f"{model} is not a pose model: {', '.join(sorted(missing))} is missing in the bundle.")


@contextlib.contextmanager
def _native_log_set_aside() -> Iterator[None]:
    """Keep what native code prints to file descriptor 2 off the screen, and attach it to the error if there is one.

    MediaPipe and TFLite print warnings for each landmarker made and offer no switch; what matters they also raise.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except (ValueError, RuntimeError) as error:
            log.seek(0)
            error.add_note(log.read().decode(errors="replace").strip())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
