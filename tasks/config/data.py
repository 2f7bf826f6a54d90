"""The sections from pictures to shards: raw, mannequin, extract, curate, shard, card."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from tasks import paths
from tasks.config.section import Fraction, Positive, Section, Seed
from tasks.config.text import TextEncoder

INBOX = paths.RAW.as_posix()  # every folder in it is a part
MANNEQUIN = paths.MANNEQUIN.as_posix()  # the built-in pictures, which a stage makes
# DVC allows these characters in the name of a stage.
PartName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*$", max_length=100)]


class Raw(Section):
    """Where the pictures are. A part is one delivery: a folder whose sub-folders are categories."""

    folder: str | None = Field(INBOX, min_length=1)  # every folder in it is a part; null: only those named below
    parts: dict[PartName, Annotated[str, Field(min_length=1)]] = Field({"mannequin": MANNEQUIN}, min_length=1)

    @model_validator(mode="after")
    def _parts_are_disjoint(self) -> Raw:
        for (name, folder), (other, around) in permutations(self.parts.items(), 2):
            if Path(folder).is_relative_to(around):
                raise ValueError(f"parts.{name} ({folder}) is parts.{other} ({around}), or lies in it")
        for name, folder in self.parts.items():
            if (name == "mannequin") != (folder == MANNEQUIN):
                raise ValueError(f"the built-in pictures are the part mannequin: {MANNEQUIN}; got {name}: {folder}")
        return self


class Mannequin(Section):
    """The built-in data: rendered mannequins whose joints are known."""

    count: Positive = 1200
    size: int = Field(224, ge=64, le=1024)  # pixels, square
    seed: Seed = 0


class SecondOpinion(Section):
    """MoveNet, which finds people that MediaPipe misses, and doubts others: docs/extraction.md."""

    source: str = Field(min_length=1)  # the file in the workspace that `python -m tasks.extract.movenet` writes
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    side: int = Field(384, ge=128, le=1024)  # pixels of the picture's longer side as MoveNet sees it
    agreement: float = Field(0.35, gt=0)  # torso lengths between the limbs as both networks see them


class Extract(Section):
    """Pose extraction with MediaPipe."""

    model: str = "models/pose_landmarker_full.task"
    model_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # which extraction checks; null: not checked
    min_confidence: Fraction = 0.5  # of detection, presence and tracking alike
    min_side: int = Field(64, ge=16)  # pixels; a smaller picture is refused
    max_people: int = Field(4, ge=1, le=32)  # most persons in a picture
    video_rate: float = Field(4.0, gt=0, le=240)  # frames per second read from videos and motion captures
    # Torso lengths: a frame is kept if the limbs of a person moved this far on average.
    pose_change: float = Field(0.15, ge=0)
    # Tiles along each side of a picture in which people are small, for a second look; 0: there is none.
    second_pass: int = Field(0, ge=0, le=6)
    second_opinion: SecondOpinion | None = None
    workers: int = Field(0, ge=0)  # 0: one per core
    time_limit: float = Field(120.0, gt=0)  # seconds for a picture or a frame, then its file is rejected


class Curate(Section):
    """Which persons are kept, and how they are split."""

    min_visibility: Fraction = 0.7  # mean visibility of the 12 limb landmarks
    margin: float = Field(0.08, ge=0, le=1)  # of the person's longer side, around the crop
    min_pixels: float = Field(48, ge=0)  # longer side of a person
    max_truncation: Fraction = 0.25  # of the 12 limb landmarks outside the picture
    min_sharpness: float = Field(50, ge=0)  # variance of the Laplacian, see tasks.extract.people
    min_exposure: Fraction = 0.05  # mean brightness of the person's box, 0 black .. 1 white
    max_exposure: Fraction = 0.95
    group_cap: Positive = (
        100  # most persons of one group (one video, copies of one picture); the most different are kept
    )
    near_duplicate: Fraction = 0.17  # distance up to which two pictures are one group; 0: the search is off
    val: Fraction = 0.2
    test: Fraction = 0.1
    seed: Seed = 0

    @model_validator(mode="after")
    def _leaves_training_data(self) -> Curate:
        if self.min_exposure >= self.max_exposure:
            raise ValueError("min_exposure must be below max_exposure")
        if self.val + self.test >= 0.9:
            raise ValueError("val + test must be below 0.9, so that training data are left")
        return self


class Shard(Section):
    """How the shards are written."""

    size: int = Field(128, ge=16, le=1024)  # pixels of the stored square crop; models read any smaller size
    samples_per_shard: Positive = 1000
    text: TextEncoder | None = None  # of captions, for models with the condition text; null: captions are not embedded


class Card(Section):
    """The data card."""

    licence: str | None = None  # of the pictures, and where they come from, if no SOURCE.txt beside them says it
