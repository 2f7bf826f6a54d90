"""The sections of the models: poses, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from diffusion_core.choice_table import Value
from diffusion_core.training_choices import RECIPES, Training
from tasks.config.nets import PATCHLESS, SHAPES, Net, Preset, Shape
from tasks.config.optimisation import Optimisation
from tasks.config.section import Fraction, LevelsName, LossName, NoiseName, Positive, RecipeName, TargetName, WeightName


class Train(Optimisation):
    """One model: its network and its training."""

    recipe: RecipeName = "edm"
    # Recipe -> its parameters, used if that recipe is chosen; auto: measured of the data; null: the recipe's default. Noise
    # levels are in the network's units, in which data have standard deviation 0.5.
    options: dict[RecipeName, dict[str, float | str | None]] = Field({})
    target: TargetName | None = None  # what the network predicts; null: the recipe's own
    weight: WeightName | None = None  # of the noise levels in the loss; null: the recipe's own
    levels: LevelsName | None = None  # how the noise levels of a batch are drawn; null: the recipe's own
    noise: NoiseName = "normal"  # distribution of the noise
    loss: LossName | None = None  # what an error costs; null: the recipe's own, for most the squared error
    preset: Preset | None = None  # a named size instead of width, depth and heads
    width: int | None = Field(None, ge=16, le=4096)
    depth: int | None = Field(None, ge=1, le=64)
    heads: int | None = Field(None, ge=1, le=64)
    dropout: Fraction = 0.0
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

    @property
    def training(self) -> Training:
        """What is chosen of the method."""
        parameters = self.options.get(self.recipe, {})
        return Training(self.recipe, parameters, self.target, self.weight, self.levels, self.noise, self.loss)

    def with_parameters(self, parameters: Mapping[str, Value]) -> Self:
        """A copy with these parameters of its recipe."""
        return self.model_copy(update={"options": {**self.options, self.recipe: dict(parameters)}})

    @model_validator(mode="after")
    def _choices_go_together(self) -> Train:
        for recipe, parameters in self.options.items():
            Training(recipe, parameters).check()
        self.training.check()
        choice = RECIPES[self.recipe]
        if self.self_condition and (choice.cold or choice.tokens or choice.mixed):
            raise ValueError(f"self_condition must be false for recipe {self.recipe}")
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

    @model_validator(mode="after")
    def _is_for_poses(self) -> Poses:
        if RECIPES[self.recipe].pictures_only:
            raise ValueError(f"recipe {self.recipe} needs pictures")
        return self


class Pictures(Train):
    """The picture model."""

    net: Net = "patch"
    size: int = Field(32, ge=8, le=512)  # pixels
    patch: Positive = 4  # pixels (with a codec, latents) along the side of a token, for networks that have tokens
    copies: int = Field(0, ge=0, le=32)  # of each picture, a little larger or smaller and shifted, its pose map alike
    conditions: list[Literal["category", "pose_map", "pose_vector", "pose_tokens", "text"]] = Field(
        ["category", "pose_map"]
    )
    # Of net rin: share of the examples whose latents start from those of a first pass; above 0, all do in sampling.
    latent_self_conditioning: Fraction = 0.0
    body_weight: float = Field(0.0, ge=0, le=100)  # how much more an error costs on the person's limbs
    # Largest sigma of noise added to the pose in training; the network gets its level as a condition.
    condition_noise: float = Field(0.0, ge=0, le=10)

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return self.net

    @model_validator(mode="after")
    def _size_fits_patches(self) -> Pictures:
        if self.net not in PATCHLESS and self.size % self.patch:
            raise ValueError(f"size must be a multiple of patch ({self.patch}), got {self.size}")
        if self.condition_noise and not any(name.startswith("pose") for name in self.conditions):
            raise ValueError("condition_noise needs a condition on the pose")
        if self.latent_self_conditioning and self.net != "rin":
            raise ValueError(f"latent_self_conditioning needs net rin, got {self.net}")
        return self
