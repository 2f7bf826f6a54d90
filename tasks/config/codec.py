"""The section of the codec: what pictures are turned into before the picture model sees them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.optimisation import Optimisation
from tasks.config.section import Positive

Kind = Literal["none", "pca", "kl", "vq"]


class Codec(Optimisation):
    """An autoencoder of pictures. The keys of its training are those of every model, with defaults for two cores."""

    # none: pixels. pca: principal components of patches, in closed form. kl: an autoencoder with noise on its latents.
    # vq: one with a codebook.
    kind: Kind = "none"
    factor: Literal[2, 4, 8, 16] = 8  # pixels along the side of what becomes one place of the latents
    latents: int = Field(default=32, ge=1, le=512)  # channels
    widths: list[Positive] = Field(default=[32, 64, 128])  # channels of the convolutions, one entry for each halving
    depth: int = Field(default=1, ge=1, le=16)  # residual blocks at each resolution; the decoder has one more
    codes: int = Field(default=512, ge=2, le=65536)  # of a codebook
    # Largest standard deviation of the noise on the latents, whose mean square is about 1.
    noise: float = Field(default=0.3, ge=0, le=2)
    body_weight: float = Field(default=4.0, ge=0, le=100)  # how much more an error costs on the person's limbs
    mirror: bool = True
    copies: int = Field(default=3, ge=0, le=32)  # of each picture, a little larger or smaller and shifted

    images: Positive = 25600
    batch: Positive = 32
    optimiser: Literal["adamw", "muon"] = "muon"
    learning_rate: float = Field(default=1.5e-3, gt=0, lt=1)
    warmup_images: int = Field(default=1600, ge=0)
    cooldown_images: int = Field(default=12800, ge=0)
    ema_halflife_images: int = Field(default=1000, ge=0)
    checkpoint_images: Positive = 6400
    keep: Literal["validation_loss", "last"] = "last"

    @property
    def net_name(self) -> str:
        """The kind's name in the description of a run."""
        return f"{self.kind} codec"

    @model_validator(mode="after")
    def _can_be_built(self) -> Codec:
        halvings = self.factor.bit_length() - 1
        if self.kind in ("kl", "vq") and len(self.widths) != halvings:
            raise ValueError(f"a factor of {self.factor} needs {halvings} widths, got {len(self.widths)}")
        if self.latents > 3 * self.factor**2:
            raise ValueError(
                f"latents must be at most {3 * self.factor**2}, the numbers of a patch, got {self.latents}"
            )
        if self.kind == "vq" and self.sharded:
            raise ValueError("a codebook cannot be sharded; set sharded to false")
        return self
