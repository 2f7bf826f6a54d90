"""The section `adapt`: small trained changes of a published model (personalisation)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.optimisation import Device, Keep, Optimisation
from tasks.config.section import Fraction, Positive, Section
from tasks.config.text import check_template


class Certificate(Section):
    """Pictures that the adapted model draws when its training has ended, for the test whether they are copies."""

    samples: int = Field(default=64, ge=50)  # pictures drawn for the captions it was trained on
    steps: int = Field(default=25, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=0, le=100)
    # A folder of further pictures of the same kind that are not trained on. They calibrate the test beside those of `val`.
    heldout: str | None = Field(default=None, min_length=1)


class SmallChange(Optimisation):
    """How a small change of a trained model is trained."""

    warmup_images: int = Field(0, ge=0)
    optimiser: Literal["adamw", "adamw_8bit"] = "adamw"
    keep: Keep = "before_memorizing"
    cuda: Device = Device()
    sharded: Literal[False] = False
    start: None = None


class Adaptation(SmallChange):
    """What a published model learns from, and how it is trained."""

    # A folder of pictures with captions: NAME.txt beside a picture, captions.csv (columns file, caption), or the template.
    # null: the pictures of the workspace's shards.
    pictures: str | None = Field(None, min_length=1)
    template: str = "a photo of a {category}"  # of a caption; the category of a picture is the name of its folder
    val: Fraction = 0.2  # share of a folder that is held out, for the validation loss; shards are split already
    size: Positive | None = None  # pixels; null: those of the published model's training
    mirror: bool = False  # also train on mirror images
    caption_dropout: Fraction = 0.0  # probability of training without the caption
    certificate: Certificate | None = Certificate()  # null: the adapter is not tested for copies

    # The weights of the published network wait in the memory of the CPU; each layer's are on the GPU only while it computes.
    offload: bool = False

    images: Positive = 2000
    batch: Positive = 4
    learning_rate: float = Field(1e-4, gt=0, lt=1)
    ema_halflife_images: int = Field(0, ge=0)
    checkpoint_images: Positive = 400
    distance_samples: Literal[0] = 0

    @model_validator(mode="after")
    def _template_has_a_category(self) -> Adaptation:
        check_template(self.template)
        return self

    @model_validator(mode="after")
    def _offload_recomputes(self) -> Adaptation:
        if self.offload and not self.recompute:
            raise ValueError("offload needs recompute: true: else the backward pass needs all weights at once")
        return self


class Lora(Adaptation):
    """Low-rank changes of some layers (Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float | None = Field(None, gt=0)  # the change is multiplied by alpha / rank; null: rank
    targets: list[str] | None = Field(None, min_length=1)  # names of layers, or their ends; null: those of attention

    @property
    def net_name(self) -> str:
        """The kind's name in the description of a run."""
        return f"LoRA of rank {self.rank}"


class Prior(Section):
    """Pictures that the published model draws itself, and goes on drawing: they keep the class from becoming the subject."""

    prompt: str = Field(min_length=1)  # of the class, such as "a photo of a cat"
    count: Positive = 100
    weight: float = Field(1.0, gt=0, le=100)  # of their loss beside that of the pictures
    steps: int = Field(25, ge=1, le=1000)
    guidance: float = Field(7.5, ge=0, le=100)


class Dreambooth(Lora):
    """A LoRA of one subject with prior preservation (Ruiz et al. 2022, arXiv 2208.12242)."""

    prior: Prior

    @property
    def net_name(self) -> str:
        """The kind's name in the description of a run."""
        return f"Dreambooth, {super().net_name}"


class TextualInversion(Adaptation):
    """A new word of Stable Diffusion 1 or 2 (Gal et al. 2022, arXiv 2208.01618)."""

    word: str = Field("<my-thing>", pattern=r"^[^\s,.;]+$")  # captions must contain it
    vectors: int = Field(1, ge=1, le=32)  # of the word
    initial: str | None = Field(None, min_length=1)  # a word whose vector they start from; null: the mean of all
    template: str = "a photo of <my-thing>"
    learning_rate: float = Field(5e-3, gt=0, lt=1)

    @property
    def net_name(self) -> str:
        """The kind's name in the description of a run."""
        return f"word of {self.vectors} vectors"


class ControlNet(Adaptation):
    """A branch that gives Stable Diffusion the poses of the shards (Zhang et al. 2023, arXiv 2302.05543)."""

    pictures: None = None  # only the shards have poses
    learning_rate: float = Field(1e-5, gt=0, lt=1)
    images: Positive = 20_000
    checkpoint_images: Positive = 2000

    @property
    def net_name(self) -> str:
        """The kind's name in the description of a run."""
        return "ControlNet"


class OwnChange(SmallChange):
    """A change of one of our own models, learned from the workspace's shards; what is not here is as in the model's training.

    Every method learns an embedding for each category that the model does not know.
    """

    of: str = Field("champion", pattern="^(champion|challenger|previous|[0-9a-f]{64})$")  # alias, or sha256 of the file
    # lora: low-rank changes; dreambooth: the same, and half of the examples are what the model draws of its own categories;
    # textual_inversion: nothing but the embeddings of new categories; fine_tuning: all weights.
    method: Literal["lora", "dreambooth", "textual_inversion", "fine_tuning"] = "lora"
    categories: list[str] | None = Field(None, min_length=1)  # to learn; null: all of the shards
    prior: Positive = 64  # pictures or poses that the model draws for dreambooth
    rank: int = Field(8, ge=1, le=1024)
    alpha: float | None = Field(None, gt=0)  # the change is multiplied by alpha / rank; null: rank
    targets: list[str] | None = Field(None, min_length=1)  # names of layers, or their ends; null: of attention and MLPs
    scale: float = Field(1.0, ge=0, le=10)  # of the change in the finished model; 0: the model as it was
    certificate: int = Field(64, ge=0, le=10_000)  # pictures drawn for the copy test, at least 50; 0: none

    images: Positive = 8000
    batch: Positive = 32
    learning_rate: float = Field(1e-3, gt=0, lt=1)
    ema_halflife_images: int = Field(500, ge=0)
    checkpoint_images: Positive = 1600
    recompute: Literal[False] = False

    @model_validator(mode="after")
    def _certificate_has_enough_samples(self) -> OwnChange:
        if 0 < self.certificate < 50:
            raise ValueError(f"certificate must be 0 or at least 50, got {self.certificate}")
        return self

    @model_validator(mode="after")
    def _methods_have_what_they_need(self) -> OwnChange:
        if self.method == "dreambooth" and self.categories is None:
            raise ValueError("method dreambooth needs categories: the others are what the model draws itself")
        if self.method == "fine_tuning" and self.scale != 1:
            raise ValueError(f"method fine_tuning has no change to be scaled: scale must be 1, got {self.scale}")
        return self


class Adapt(Section):
    """By name of the method."""

    lora: Lora | None = None
    dreambooth: Dreambooth | None = None
    textual_inversion: TextualInversion | None = None
    controlnet: ControlNet | None = None
    poses_adapted: OwnChange | None = None  # of our pose model
    pictures_adapted: OwnChange | None = None  # of our picture model

    @property
    def published(self) -> bool:
        """Whether a published model is adapted."""
        return any(
            section is not None for section in (self.lora, self.dreambooth, self.textual_inversion, self.controlnet)
        )
