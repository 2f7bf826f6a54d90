"""The section of the codec: what pictures are turned into before the picture model sees them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.evaluation import Weights
from tasks.config.optimisation import Optimisation
from tasks.config.section import Positive, Section

Kind = Literal["none", "pca", "kl", "vq", "published"]


class Adversarial(Section):
    """A patch discriminator that is trained beside the codec (VAE + GAN, VQGAN)."""

    from_images: int = Field(default=9600, ge=0)  # it is switched on after so many images
    weight: float = Field(default=0.8, gt=0, le=100)  # of its verdict, times the adaptive weight
    width: int = Field(
        default=32, ge=8, le=512
    )  # channels of its first convolution; each further one has twice as many
    depth: int = Field(default=3, ge=1, le=6)  # halvings of the picture
    learning_rate: float = Field(default=3e-4, gt=0, lt=1)  # of its AdamW


class Perceptual(Section):
    """A perceptual loss: the distance in the features of VGG-16, whose weights are the user's."""

    vgg: Weights  # as torchvision stores them
    lpips: Weights | None = None  # LPIPS' weights of the layers; null: all features alike
    weight: float = Field(default=1.0, gt=0, le=100)


class Codec(Optimisation):
    """An autoencoder of pictures. The keys of its training are those of every model, with defaults for two cores."""

    # none: pixels. pca: principal components of patches, in closed form. kl: an autoencoder with noise on its latents.
    # vq: one with a codebook. published: one of diffusers.
    kind: Kind = "none"
    factor: Literal[2, 4, 8, 16] = 8  # pixels along the side of what becomes one place of the latents
    latents: int = Field(default=32, ge=1, le=512)  # channels
    widths: list[Positive] = Field(default=[32, 64, 128])  # channels of the convolutions, one entry for each halving
    depth: int = Field(default=1, ge=1, le=16)  # residual blocks at each resolution; the decoder has one more
    codes: int = Field(default=512, ge=2, le=65536)  # of a codebook
    # Largest standard deviation of the noise on the latents, whose mean square is about 1.
    noise: float = Field(default=0.3, ge=0, le=2)
    adversarial: Adversarial | None = None
    perceptual: Perceptual | None = None
    pose: bool = False  # whether the decoder sees the pose map
    published: Weights | None = (
        None  # a folder of diffusers, and the sha256 of diffusion_pytorch_model.safetensors in it
    )
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
        return f"{'adversarial ' if self.adversarial else ''}{self.kind} codec"

    @model_validator(mode="after")
    def _can_be_built(self) -> Codec:
        halvings = self.factor.bit_length() - 1
        if self.kind in ("kl", "vq") and len(self.widths) != halvings:
            raise ValueError(f"a factor of {self.factor} needs {halvings} widths, got {len(self.widths)}")
        if self.kind != "published" and self.latents > 3 * self.factor**2:
            raise ValueError(
                f"latents must be at most {3 * self.factor**2}, the numbers of a patch, got {self.latents}"
            )
        if self.sharded and (self.kind == "vq" or self.adversarial):
            raise ValueError("neither a codebook nor an adversarial loss can be sharded; set sharded to false")
        for key in ("adversarial", "perceptual", "pose"):
            if getattr(self, key) and self.kind not in ("kl", "vq"):
                raise ValueError(f"{key} needs a codec that is trained, kind kl or vq")
        if (self.kind == "published") != (self.published is not None):
            raise ValueError("kind published and the key published, with source and sha256, go together")
        return self
