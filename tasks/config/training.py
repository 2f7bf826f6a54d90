"""The sections of the models: poses, pictures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diffusion_core import choices
from tasks.config.nets import SHAPES, Net, Preset, Shape
from tasks.config.optimisation import Optimisation
from tasks.config.section import Fraction, LevelsName, Positive, RecipeName, WeightName


class Train(Optimisation):
    """One model: its network and its training."""

    recipe: RecipeName = "edm"
    weight: WeightName | None = None  # of the noise levels in the loss; null: the recipe's own
    levels: LevelsName | None = None  # how the noise levels of a batch are drawn; null: the recipe's own
    preset: Preset | None = None  # a named size instead of width, depth and heads
    width: int | None = Field(None, ge=16, le=4096)
    depth: int | None = Field(None, ge=1, le=64)
    heads: int | None = Field(None, ge=1, le=64)
    dropout: Fraction = 0.0
    # Mean and standard deviation of the log noise level in training, in the network's units (data have standard deviation 0.5),
    # for the recipes edm, edm2 and trigflow; null: the recipe's own.
    p_mean: float | None = Field(default=None, ge=-10, le=10)
    p_std: float | None = Field(default=None, gt=0, le=10)
    self_condition: bool = False  # the network gets its own first estimate; sampling costs twice as much
    mirror: bool = True  # also train on mirror images, with left and right exchanged
    # Probability of each augmentation (flip, scale, rotation, shift); the network gets their parameters as a condition.
    augment: Fraction = 0.0
    condition_dropout: Fraction = 0.1  # probability of withholding all conditions, for guidance
    # Probability of withholding each condition by itself, so that guidance can leave out a single one.
    condition_dropout_each: Fraction = 0.0

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return "pose"

    @property
    def shape(self) -> Shape:
        """Width, depth and heads, from the preset or the three numbers."""
        if self.preset is not None:
            return SHAPES[self.net_name][self.preset]
        # The validator below requires all three.
        return Shape(int(self.width or 0), int(self.depth or 0), int(self.heads or 0))

    @model_validator(mode="after")
    def _choices_go_together(self) -> Train:
        choices.check_training(self.recipe, self.weight, self.levels)
        return self

    @model_validator(mode="after")
    def _has_a_size(self) -> Train:
        given = [key for key in ("width", "depth", "heads") if getattr(self, key) is not None]
        if self.preset is not None and given:
            raise ValueError(f"preset sets the size of the network: remove {', '.join(given)}, or preset")
        if self.preset is None and len(given) < 3:
            raise ValueError("give width, depth and heads, or a preset")
        if self.shape.width % (2 * self.shape.heads):
            raise ValueError(f"width must be a multiple of 2 * heads ({2 * self.shape.heads}), got {self.shape.width}")
        return self


class Poses(Train):
    """The pose model: a transformer over the 33 joints."""

    conditions: list[Literal["category"]] = Field(["category"])
    condition_noise: Literal[0] = 0  # there is no pose to add noise to
    copies: Literal[0] = 0  # poses have no frame in which they could be shifted


class Pictures(Train):
    """The picture model."""

    net: Net = "patch"
    size: int = Field(32, ge=8, le=512)  # pixels
    patch: Positive = 4  # pixels (with a codec, latents) along the side of a token, for networks that have tokens
    copies: int = Field(0, ge=0, le=32)  # of each picture, a little larger or smaller and shifted, its pose map alike
    conditions: list[Literal["category", "pose_map", "pose_vector", "pose_tokens"]] = Field(["category", "pose_map"])
    body_weight: float = Field(0.0, ge=0, le=100)  # how much more an error costs on the person's limbs
    # Largest sigma of noise added to the pose in training; the network gets its level as a condition.
    condition_noise: float = Field(0.0, ge=0, le=10)

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return self.net

    @model_validator(mode="after")
    def _size_fits_patches(self) -> Pictures:
        if self.net not in ("unet", "edm2") and self.size % self.patch:
            raise ValueError(f"size must be a multiple of patch ({self.patch}), got {self.size}")
        if self.condition_noise and not any(name.startswith("pose") for name in self.conditions):
            raise ValueError("condition_noise needs a condition on the pose")
        return self
