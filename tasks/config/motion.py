"""The section of clips of moving people and the model of them: motion."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diffusion_core.training_choices import RECIPES
from tasks.config.sampling import SamplingChoices
from tasks.config.section import Fraction, Positive, Section, Seed
from tasks.config.training import Train


class Animation(Section):
    """The built-in motion: animated mannequins whose joints are known in every frame."""

    count: int = Field(default=1400, ge=0)  # clips; 0: none
    seconds: float = Field(default=2.0, gt=0, le=60)  # length of a clip
    rate: float = Field(default=12.0, ge=12, le=240)  # frames per second
    seed: Seed = 0


class Clips(Section):
    """How motion is cut into clips."""

    frames: int = Field(default=24, ge=4, le=1024)  # in a clip
    rate: float = Field(default=12.0, gt=0, le=240)  # frames per second of the clips; others are resampled to it
    stride: Positive = 12  # frames from the beginning of one clip of a person to that of the next
    max_gap: float = Field(default=1.0, gt=0)  # seconds between two poses of a person that are bridged by interpolation
    min_visibility: Fraction = 0.7  # mean over a clip of the visibility of the 12 limb landmarks


class MotionModel(Train):
    """The motion model: a transformer over parts of the body and frames."""

    conditions: list[Literal["category", "first_pose", "path"]] = Field(default=["category", "first_pose", "path"])
    stills: int = Field(default=0, ge=0, le=64)  # poses of the dataset beside each clip in training; 0: clips alone
    # Probability of withholding first pose and path, each by itself: what a user does not give is withheld.
    pose_dropout: Fraction = 0.7
    # How much changes from frame to frame are amplified in what the network sees: an error of a velocity (torso lengths per
    # frame) costs sharpening^2 times that of a position. 0: not at all.
    sharpening: float = Field(default=0.0, ge=0, le=100)
    world_feet: bool = False  # the network sees feet in the world, where they stand still, and not relative to the hips
    # Weights of further costs, beside that of the recipe (arXiv 2209.14916, eq. 4 and 5): of wrong velocities, and of feet
    # that move while they stand in the data.
    velocity_loss: float = Field(default=0.0, ge=0, le=1000)
    foot_contact_loss: float = Field(default=0.0, ge=0, le=1000)
    condition_noise: Literal[0] = 0
    copies: Literal[0] = 0
    augment: Literal[0] = 0
    self_condition: Literal[False] = False

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return "motion"

    @model_validator(mode="after")
    def _is_for_motion(self) -> MotionModel:
        choice = RECIPES[self.recipe]
        if choice.pictures_only or choice.cold:
            raise ValueError(f"recipe {self.recipe} needs pictures")
        if choice.mixed:
            raise ValueError(f"recipe {self.recipe} is for poses and pictures")
        return self


class MotionSample(SamplingChoices):
    """Sampling of motion."""

    count: Positive
    batch: Positive = 64  # changes the speed, never a sample
    seed: Seed = 0
    examples: int = Field(default=4, ge=0, le=64)  # of each way to control the model that the report shows
    # How strongly frames that are given pull on the others, in reconstruction guidance (arXiv 2204.03458, eq. 7).
    strength: float = Field(default=1.0, gt=0, le=100)
    overlap: Positive = 8  # frames that consecutive windows of a long motion share


class Motion(Section):
    """Clips and the model of them. Its stages exist if `run` is [motion]; otherwise they cost nothing."""

    run: list[Literal["motion"]] = Field(default=[], max_length=1)
    animation: Animation = Animation()
    clips: Clips = Clips()
    model: MotionModel = MotionModel.model_validate({
        "preset": "XS", "images": 16000, "batch": 32, "learning_rate": 1e-3, "warmup_images": 800,
        "ema_halflife_images": 800, "checkpoint_images": 4000,
    })  # fmt: skip
    sample: MotionSample = MotionSample.model_validate({"count": 450})
