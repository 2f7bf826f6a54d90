"""The section of the upscaler, which doubles the size of pictures, once or several times."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from diffusion_core.training_choices import RECIPES
from tasks.config.nets import Preset
from tasks.config.section import Positive
from tasks.config.training import Train


class Upscaler(Train):
    """A diffusion model of crops of large pictures, given the same crops at half the size (Ho et al. 2021)."""

    # Pixels of the enlarged pictures: 2, 4 or 8 times pictures.size, the upscaler being applied once, twice or three times.
    # null: there is no upscaler.
    size: int | None = Field(None, ge=16, le=1024)
    crop: int = Field(64, ge=16, le=512)  # pixels along the side of a training crop
    crops: Positive = 64  # different ones of each picture and size
    # Largest sigma of the noise added to the smaller picture in training, drawn evenly from 0 (data have standard deviation
    # 0.5). The network gets its level.
    low_noise: float = Field(0.5, ge=0, le=10)
    preset: Preset | None = "XS"
    # It has one condition, which is never withheld, and no pose of which a mirror image would have to be made.
    self_condition: Literal[False] = False
    augment: Literal[0] = 0
    condition_dropout: Literal[0] = 0
    condition_dropout_each: Literal[0] = 0

    images: Positive = 64000
    batch: Positive = 32
    optimiser: Literal["adamw", "muon"] = "muon"
    learning_rate: float = Field(1.5e-3, gt=0, lt=1)
    warmup_images: int = Field(1600, ge=0)
    cooldown_images: int = Field(32000, ge=0)
    ema_halflife_images: int = Field(2000, ge=0)
    checkpoint_images: Positive = 12800

    @model_validator(mode="after")
    def _starts_from_noise(self) -> Upscaler:
        if RECIPES[self.recipe].cold:
            raise ValueError(f"recipe {self.recipe} adds no noise and cannot be used by the upscaler")
        if RECIPES[self.recipe].mixed and not RECIPES[self.recipe].enlarges:
            raise ValueError(f"recipe {self.recipe} is for poses and pictures, not for the upscaler")
        if self.recipe == "gan" and self.training.values.get("sigma"):
            raise ValueError("options: sigma of recipe gan must be 0 for the upscaler, whose pictures have no noise")
        if self.training.measured:
            raise ValueError(f"{', '.join(self.training.measured)} cannot be auto for the upscaler")
        return self

    @property
    def conditions(self) -> list[str]:
        """Those that can be withheld: none."""
        return []

    @property
    def net_name(self) -> str:
        """The network's name in the table of sizes."""
        return "efficient_unet"
