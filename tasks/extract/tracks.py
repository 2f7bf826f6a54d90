"""Tracking of persons from frame to frame, and the selection of frames in which somebody has moved."""

from __future__ import annotations

import numpy as np

from tasks.common.skeleton import LIMBS, normalise
from tasks.extract.landmarker import Person

_MAX_JUMP = 0.5  # of a person's size: limbs that jumped further belong to somebody else
_MAX_ABSENCE = 2.0  # seconds after which somebody who returns gets a new track


class Tracks:
    """Numbers persons 0, 1, ... in order of appearance. MediaPipe follows persons but does not identify them.

    Persons of consecutive frames are matched greedily, nearest pair first, by the mean distance of their limb joints
    relative to the person's size. Pairs further apart than half that size are not matched.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, np.ndarray]] = {}  # track -> (seconds, limbs in the picture)
        self._next = 0

    def follow(self, seconds: float, persons: list[Person], width: int, height: int) -> list[int]:
        """The track number of each person in a frame of this size (pixels) at this time (seconds)."""
        limbs = [person.landmarks[list(LIMBS), :2] * [width, height] for person in persons]
        known = [track for track, (last, _) in self._last.items() if seconds - last <= _MAX_ABSENCE]
        tracks = [-1] * len(persons)
        pairs = [(_distance(limbs[i], self._last[track][1]), i, track) for i in range(len(limbs)) for track in known]
        for distance, i, track in sorted(pairs):
            if distance < _MAX_JUMP and tracks[i] < 0 and track not in tracks:
                tracks[i] = track
        for i, track in enumerate(tracks):
            if track < 0:
                tracks[i], self._next = self._next, self._next + 1
            self._last[tracks[i]] = seconds, limbs[i]
        return tracks


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    size = max(float(np.ptp(a, axis=0).max()), float(np.ptp(b, axis=0).max()), 1e-9)
    return float(np.linalg.norm(a - b, axis=1).mean()) / size


class Movement:
    """Selects the frames that show a new pose: somebody has moved since the last frame that was kept of them."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._kept: dict[int, np.ndarray] = {}

    def shows(self, poses: dict[int, np.ndarray]) -> bool:
        """Whether a frame with these world landmarks `[33, 3]` by track shows a new pose; if so, it counts as kept.

        A pose is new if its mean distance over the 12 limb landmarks, hip-centred and in torso lengths, from the last kept
        pose of the track is at least the threshold, or if the track is new.
        """
        normal = {track: normalise(world.astype(np.float64)) for track, world in poses.items()}
        if not any(self._new(track, pose) for track, pose in normal.items()):
            return False
        self._kept |= normal
        return True

    def _new(self, track: int, pose: np.ndarray) -> bool:
        if track not in self._kept:
            return True
        return float(np.linalg.norm(pose - self._kept[track], axis=1)[list(LIMBS)].mean()) >= self._threshold
