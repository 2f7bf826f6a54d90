"""Who is who from one frame to the next, and whether somebody has moved enough to be worth a row."""

from __future__ import annotations

import numpy as np

from tasks.common.skeleton import LIMBS, normalise
from tasks.extract.landmarker import Person

_FAR = 0.5  # of a person's size: limbs that jumped this far are somebody else's
_MEMORY = 2.0  # seconds after which somebody who left comes back as somebody new


class Tracks:
    """Numbers persons 0, 1, ... in order of appearance; MediaPipe follows them and does not say who is who.

    Persons of consecutive frames are paired by the mean distance of their limbs in parts of the person's size, the
    nearest pair first; a pair further apart than half that size is none.
    """

    def __init__(self) -> None:
        self._last: dict[int, tuple[float, np.ndarray]] = {}  # track -> (seconds, limbs in the picture)
        self._next = 0

    def follow(self, seconds: float, persons: list[Person], width: int, height: int) -> list[int]:
        """The track of each person in a frame of this size."""
        limbs = [person.landmarks[list(LIMBS), :2] * [width, height] for person in persons]
        known = [track for track, (seen, _) in self._last.items() if seconds - seen <= _MEMORY]
        tracks = [-1] * len(persons)
        pairs = [(_distance(limbs[i], self._last[track][1]), i, track) for i in range(len(limbs)) for track in known]
        for distance, i, track in sorted(pairs):
            if distance < _FAR and tracks[i] < 0 and track not in tracks:
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
    """Which frames show a new pose: those in which somebody differs from how he was last kept."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._kept: dict[int, np.ndarray] = {}

    def shows(self, poses: dict[int, np.ndarray]) -> bool:
        """Whether a frame with these world landmarks `[33, 3]` by track shows a new pose; if so, it counts as kept.

        The distance is that of the 12 limb landmarks in the mean, of hip-centred poses in torso lengths; somebody who
        was not kept before is new.
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
