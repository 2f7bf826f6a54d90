"""What extraction finds in a file: persons and refusals. Plain data, so that worker processes need no table library."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np


class Kind(StrEnum):
    """The kind of a source file."""

    PICTURE = "picture"
    VIDEO = "video"
    MOCAP = "mocap"  # poses without pictures


class Reason(StrEnum):
    """Why a file or a frame has no row in the table of poses: the closed list of reasons."""

    UNREADABLE = "unreadable"  # it could not be opened, or it is a link or not a regular file
    NOT_A_PICTURE = "not_a_picture"  # no decoder recognises it
    DAMAGED = "damaged"  # truncated or corrupt
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"  # it claims too many pixels to be decoded safely
    NO_PERSON = "no_person"
    SAME_POSE = "same_pose"  # a frame in which nobody has moved enough since a frame that was kept
    CRASHED = "crashed"  # its decoder crashed the worker process twice
    TOO_SLOW = "too_slow"  # its decoder made no progress for extract.time_limit seconds
    DUPLICATE = "duplicate"  # same bytes as an earlier file in which somebody was found


@dataclass(frozen=True)
class Finding:
    """One person in one frame. Depends on the file's content alone, not on its name."""

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
    thumbnail: np.ndarray  # uint8 [48, 48], see tasks.common.thumbnail


@dataclass(frozen=True)
class Opinion:
    """The model file of the second opinion, and how it is used (see tasks.config.data.SecondOpinion)."""

    path: str
    sha256: str
    side: int
    agreement: float


@dataclass(frozen=True)
class Settings:
    """The parameters that findings depend on (see tasks.config.data.Extract)."""

    min_confidence: float
    min_side: int
    max_people: int
    video_rate: float
    pose_change: float
    second_pass: int = 0
    second_opinion: Opinion | None = None


@dataclass(frozen=True)
class Refused:
    """A refused frame, or with `frame` None a refused file."""

    frame: int | None
    reason: Reason
    detail: str


_DEPENDS_ON_MACHINE = frozenset({Reason.CRASHED, Reason.TOO_SLOW, Reason.UNREADABLE})


@dataclass
class Findings:
    """Everything found in one file, in order of (frame, person)."""

    kind: Kind
    persons: list[Finding] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    @property
    def cacheable(self) -> bool:
        """Whether the findings depend on the file's bytes alone. If not, the machine may be the cause: the next run tries
        again."""
        return not (self.refused and self.refused[-1].reason in _DEPENDS_ON_MACHINE)
