"""The section of clips of pictures and the model of them: video."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diffusion_core.training_choices import RECIPES
from tasks.config.motion import Clips
from tasks.config.optimisation import Optimisation
from tasks.config.sampling import SamplingChoices
from tasks.config.section import Fraction, Positive, Section, Seed
from tasks.config.training import Pictures


class Film(Section):
    """The built-in motion in pictures: animated mannequins, drawn frame by frame."""

    count: int = Field(default=400, ge=0)  # clips; 0: none
    seed: Seed = 0


class PictureClips(Clips):
    """How clips of pictures are cut."""

    frames: int = Field(default=8, ge=4, le=1024)
    stride: Positive = 8
    size: int = Field(default=64, ge=8, le=512)  # pixels of the stored frames


class Beside(Section):
    """Pictures of the dataset that are trained on together with clips."""

    stills: int = Field(default=4, ge=0, le=64)  # beside each clip; 0: clips alone
    most_stills: Positive = 2048  # different ones, evenly spaced in the dataset; they are kept in memory


class VideoTraining(Optimisation, Beside):
    """How the video model is trained. What it is follows from the picture model, with whose weights it begins."""

    mirror: bool = True  # also train on mirror images, with left and right exchanged
    condition_dropout: Fraction = 0.1
    shared_noise: float = Field(
        default=0.0, ge=0, le=0.99
    )  # share of the noise's variance that all frames have in common
    start: Literal[None] = None


class VideoModel(Pictures, Beside):
    """The video model: the picture model with attention over time. `start` is the sha256 of that model's file."""

    shared_noise: float = Field(default=0.0, ge=0, le=0.99)
    copies: Literal[0] = 0
    augment: Literal[0] = 0

    def of_pictures(self) -> Pictures:
        """The same without what concerns clips."""
        return Pictures.model_validate(self.model_dump(include=set(Pictures.model_fields)))

    @model_validator(mode="after")
    def _can_be_inflated(self) -> VideoModel:
        choice = RECIPES[self.recipe]
        if choice.tokens or choice.cold or choice.mixed:
            raise ValueError(f"recipe {self.recipe} of pictures does not go with clips")
        if self.shared_noise and (self.noise != "normal" or choice.own_loss):
            raise ValueError(f"recipe {self.recipe} of pictures and its noise need video.model.shared_noise: 0")
        return self


class VideoSample(SamplingChoices):
    """Sampling of clips."""

    count: Positive = 100  # for the poses of held-out clips
    motions: int = Field(default=32, ge=0)  # for the poses of generated motion
    apart: int = Field(default=16, ge=0)  # with frames that know nothing of each other, for comparison
    batch: Positive = 16  # changes the speed, never a sample
    seed: Seed = 0


class Video(Section):
    """Clips of pictures and the model of them. Its stages exist if `run` is [video]; otherwise they cost nothing."""

    run: list[Literal["video"]] = Field(default=[], max_length=1)
    film: Film = Film()
    clips: PictureClips = PictureClips()
    model: VideoTraining = VideoTraining.model_validate({
        "images": 4800, "batch": 8, "optimiser": "muon", "learning_rate": 1e-3, "warmup_images": 240,
        "cooldown_images": 2400, "ema_halflife_images": 240, "checkpoint_images": 960, "ranks": "auto",
    })  # fmt: skip
    sample: VideoSample = VideoSample()
