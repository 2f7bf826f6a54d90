"""The models and their training: poses, pictures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.nets import SHAPES, Net, Preset, Shape
from tasks.config.optimisation import Optimisation
from tasks.config.section import Fraction, Positive


class Train(Optimisation):
    """One model: its network, its examples, its training."""

    preset: Preset | None = None  # a size with a name, instead of width, depth and heads
    width: int | None = Field(None, ge=16, le=4096)
    depth: int | None = Field(None, ge=1, le=64)
    heads: int | None = Field(None, ge=1, le=64)
    dropout: Fraction = 0.0
    self_condition: bool = False  # the network is shown its own first estimate, for twice the cost of sampling
    mirror: bool = True  # train on the mirror image of every example too, left and right swapped
    augment: Fraction = (
        0.0  # how often an example is flipped, scaled, turned, shifted, each by itself; the network is told
    )
    condition_dropout: Fraction = 0.1  # how often all conditions are withheld together, for guidance
    condition_dropout_each: Fraction = (
        0.0  # how often each is withheld by itself, so that guidance may leave out one of them
    )

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return "pose"

    @property
    def shape(self) -> Shape:
        """Width, depth and heads, by name or by number."""
        if self.preset is not None:
            return SHAPES[self.net_name][self.preset]
        return Shape(int(self.width or 0), int(self.depth or 0), int(self.heads or 0))  # none is 0, see below

    @model_validator(mode="after")
    def _sized(self) -> Train:
        given = [key for key in ("width", "depth", "heads") if getattr(self, key) is not None]
        if self.preset is not None and given:
            raise ValueError(f"preset says how large the network is: remove {', '.join(given)}, or the preset")
        if self.preset is None and len(given) < 3:
            raise ValueError("give width, depth and heads, or a preset")
        if self.shape.width % (2 * self.shape.heads):
            raise ValueError(f"width must be a multiple of 2 * heads ({2 * self.shape.heads}), got {self.shape.width}")
        return self


class Poses(Train):
    """The pose model: a transformer over the 33 joints."""

    conditions: list[Literal["category"]] = Field(["category"])
    condition_noise: Literal[0] = 0  # there is no pose to add noise to


class Pictures(Train):
    """The picture model."""

    net: Net = "patch"
    size: int = Field(32, ge=8, le=512)  # pixels
    patch: Positive = 4  # pixels along a token of those networks that have tokens
    conditions: list[Literal["category", "pose_map", "pose_vector", "pose_tokens"]] = Field(["category", "pose_map"])
    condition_noise: float = Field(
        0.0, ge=0, le=10
    )  # largest sigma of noise on the pose in training; the network is told

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return self.net

    @model_validator(mode="after")
    def _patches(self) -> Pictures:
        if self.net not in ("unet", "edm2") and self.size % self.patch:
            raise ValueError(f"size must be a multiple of patch ({self.patch}), got {self.size}")
        if self.condition_noise and not any(name.startswith("pose") for name in self.conditions):
            raise ValueError("condition_noise needs a condition on the pose")
        return self
