"""What extraction finds in a file: persons and refusals. Plain data, so that a worker process needs no table library."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Kind(StrEnum):
    """What a source is."""

    PICTURE = "picture"
    VIDEO = "video"
    MOCAP = "mocap"  # poses without pictures


class Reason(StrEnum):
    """Why a file or a frame gave no row of poses: the closed list."""

    UNREADABLE = "unreadable"  # the system would not open it, or it is a link or not a regular file
    NOT_A_PICTURE = "not_a_picture"  # no decoder knows it
    DAMAGED = "damaged"  # truncated or corrupt
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"  # claims more pixels than is sane to decode
    NO_PERSON = "no_person"
    SAME_POSE = "same_pose"  # a frame in which everybody stands as in an earlier frame that is kept
    CRASHED = "crashed"  # its decoder ended the process, twice
    TOO_SLOW = "too_slow"  # its decoder gave no sign of life for extract.time_limit
    DUPLICATE = "duplicate"  # the same bytes as an earlier file in which somebody was found


@dataclass(frozen=True)
class Finding:
    """One person in one frame: what a file says, whatever it is called."""

    frame: int
    timestamp_s: float
    person: int
    track: int
    width: int
    height: int
    landmarks: np.ndarray  # float32 [33, 5]: x/width, y/height, z/width, visibility, presence
    world: np.ndarray  # float32 [33, 3], metres
    sharpness: float
    exposure: float
    fingerprint: np.ndarray  # int8 [256], see tasks.extract.perceptual_hash


@dataclass(frozen=True)
class Settings:
    """The parameters that findings depend on (see tasks.config.data.Extract)."""

    min_confidence: float
    min_side: int
    max_people: int
    video_rate: float
    pose_change: float


@dataclass(frozen=True)
class Refused:
    """A frame, or with `frame` None the file, that gave nobody."""

    frame: int | None
    reason: Reason
    detail: str


_NOT_OF_THE_BYTES = frozenset({Reason.CRASHED, Reason.TOO_SLOW, Reason.UNREADABLE})


@dataclass
class Findings:
    """All that a file gave, in order of (frame, person)."""

    kind: Kind
    found: list[Finding] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def lasting(self) -> bool:
        """Whether they follow from the file's bytes. Else it may have been the machine, and the next run tries again."""
        return not (self.refused and self.refused[-1].reason in _NOT_OF_THE_BYTES)
