"""The models of a run: what is needed to train, to denoise and to sample one.

    poses      x0 = one pose, 33 joint tokens of 3 numbers, given its category
    pictures   x0 = one picture, 3 channels, given its category and its pose (`conditions` says in which forms)
    motion     x0 = one clip, frames of 33 joints of 3 numbers, given its category, first pose and path (`tasks.models.motion`);
               only if motion.run says so
    video      x0 = one clip, frames of 3 channels, given its category and the poses in its frames (`tasks.models.video`); only
               if video.run says so

With a codec, the network of `pictures` works on latents, and everything outside of it on pixels. A third model, the upscaler,
is built here too; `tasks/models/upscaler.py` has the rest of it.

`tasks/models/inputs.py` reads the examples, `guiding.py` beside it guides the denoiser, and `model_file.py` saves and loads a
trained model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_core import choices, rng, training_choices
from diffusion_core.codecs import Affine, Latent, Tokens
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.distill_choices import Student
from diffusion_core.error_curve import ErrorCurve
from diffusion_core.extras.corruptions import GaussianStart
from diffusion_core.guidance import self_condition
from diffusion_core.losses import Penalised, SelfConditioned, WithTerm, loss
from diffusion_core.recipe import Recipe
from diffusion_core.training import compute
from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.config.motion import MotionModel
from tasks.config.params import Params, Pictures, Poses, Upscaler
from tasks.config.sampling import SamplingChoices
from tasks.config.text import TextEncoder
from tasks.config.video import VideoModel
from tasks.dataset.shards import ShardDataset
from tasks.models import inputs, motion_codec, motion_losses
from tasks.models.build import network
from tasks.models.conditioning import KEYS, SELF, AnyModel, conditions, weights, widths

Config = AnyModel | Upscaler
# Model -> its section of the parameters.
KINDS: dict[str, Callable[..., Config]] = {
    "poses": Poses,
    "pictures": Pictures,
    paths.UPSCALER: Upscaler,
    paths.MOTION: MotionModel,
    paths.VIDEO: VideoModel,
}
ERRORS = "errors"  # key of the measured errors in a model's file
STUDENT = "student"  # key of what a distilled model learned in its file


class EmbeddedText(NamedTuple):
    """A text encoder, and the width of its embeddings."""

    encoder: TextEncoder
    width: int

    @classmethod
    def of(cls, dataset: ShardDataset, config: Config) -> EmbeddedText | None:
        """That of a dataset, for models with text. Raises DataError if the dataset has none."""
        if isinstance(config, Upscaler) or "text" not in config.conditions:
            return None
        about = dataset.text
        return cls(TextEncoder(**{name: about[name] for name in TextEncoder.model_fields}), int(about["width"]))


class ClipShape(NamedTuple):
    """Frames of a clip, and how many there are in a second."""

    frames: int
    rate: float

    @classmethod
    def of(cls, dataset: ShardDataset) -> ClipShape | None:
        """Of the clips of a dataset; None if it holds something else."""
        about = dataset.about
        return cls(int(about["frames"]), float(about["rate"])) if "frames" in about else None


@dataclass(frozen=True)
class Model:
    """A model: what is needed to train it, to denoise and to sample."""

    name: str
    config: Config
    categories: list[str]
    denoiser: Preconditioned
    recipe: Recipe
    codec: Affine | Latent
    margin: float  # around a person in the square crop
    padded: bool  # whether training pictures have padding: the network is told where
    meta: dict[str, Any]
    initial: GaussianStart | None = None  # from which sampling starts if the recipe adds no noise
    clip: ClipShape | None = None  # of the models of motion and video
    # The smallest and largest values of the training data in the network's units, if the recipe limits its estimate to them.
    limits: tuple[Tensor, Tensor] | None = None
    text: EmbeddedText | None = None  # the text encoder whose embeddings the model is given

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example in the network's units."""
        return shape_of(self.config, self.codec, self.clip)

    def examples(self, dataset: ShardDataset) -> inputs.Examples:
        """The examples of a split in data units, with conditions as the network gets them; padding has no weight.

        Not for the upscaler.
        """
        assert not isinstance(self.config, Upscaler)
        out = inputs.examples(
            dataset, self.config, self.categories, mirrored=False, factor=self.codec.factor, padded=self.padded
        )
        return inputs.Examples(out.x0, weights(out.cond, 0.0))

    def conditions(
        self, categories: Sequence[str | None], poses: np.ndarray | None = None, text: np.ndarray | None = None
    ) -> Cond:
        """The conditions for one category per sample and, for pictures, the poses `[n, 33, 3]` that they shall show.

        The poses of clips of pictures are `[n, frames, 33, 3]`. `text`: the embeddings of captions by the model's text encoder,
        `[n, length, width]`.

        A category that is None or unknown to the model is withheld, as in condition dropout. So are a text that is not given,
        and first pose and path of the motion model, see `motion.first_pose_map` and `motion.path_map`. Not for the upscaler.
        """
        assert not isinstance(self.config, Upscaler)
        return conditions(self.config, self.categories, self.margin, categories, poses, self.codec.factor, text)

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the network is evaluated: matrix products in the precision in which it was trained."""
        device = next(self.denoiser.parameters()).device
        choice = self.config.cuda if device.type == "cuda" else self.config.cpu
        precision = compute.best_precision(device) if choice.precision == "auto" else choice.precision
        return compute.autocast(compute.Compute(precision), device)

    @property
    def errors(self) -> ErrorCurve:
        """The error of the denoiser at each level, measured at the end of the training. Raises DataError if it was not."""
        if ERRORS not in self.meta:
            raise DataError(f"The {self.name} model has no measured errors: an older version trained it.")
        return ErrorCurve(**self.meta[ERRORS])

    def category(self, name: str) -> Cond:
        """The condition on a category, one row that holds for any number of rows. Raises UserError if it is not known."""
        if name not in self.categories:
            known = ", ".join(self.categories)
            raise UserError(f"guidance.negative: the {self.name} model knows {known}, not {name!r}.")
        key, device = KEYS["category"], next(self.denoiser.parameters()).device
        row = torch.zeros(1, len(self.categories), device=device)
        row[0, self.categories.index(name)] = 1
        return {key: row}

    def check_same_kind(self, other: Model) -> Model:
        """The other model. Raises UserError if it does not have the conditions and the network's units of this one."""
        same_units = all(
            a.shape == b.shape and torch.allclose(a.cpu(), b.cpu())
            for a, b in ((self.codec.mean, other.codec.mean), (self.codec.scale, other.codec.scale))
        ) and motion_codec.options(self.codec) == motion_codec.options(other.codec)
        for what, same in (
            ("categories", self.categories == other.categories),
            ("conditions", self.config.conditions == other.config.conditions),
            ("shape of examples", self.shape == other.shape),
            ("codec, or scale of the data", same_units),
        ):
            if not same:
                raise UserError(f"The {self.name} model and the one that guides it must have the same {what}.")
        return other

    @property
    def student(self) -> Student | None:
        """What the model learned of its teacher, if it was distilled."""
        return Student(**self.meta[STUDENT]) if STUDENT in self.meta else None

    def fitting(self, how: SamplingChoices) -> SamplingChoices:
        """How to sample this model where `how` was not chosen for it: a student has a sampler and steps of its own."""
        if self.student is None:
            return how
        own = {"sampler": self.student.sampler, "steps": self.student.steps, "timesteps": None, "start": None}
        return how.model_copy(update=own)

    def sampler(self, sampling: choices.Sampling, known: choices.Known | None = None) -> choices.Made:
        """The levels and the solver of a sampler. Raises UserError if a model of this recipe cannot be sampled in this way."""
        student = self.student
        if student is not None:
            wanted = (sampling.sampler, sampling.steps, sampling.timesteps, sampling.start)
            if wanted != (student.sampler, student.steps, None, None):
                raise UserError(
                    f"The {self.name} model is a student of {student.method} distillation: it is sampled with sampler "
                    f"{student.sampler} in {student.steps} steps, without timesteps or start."
                )
            timesteps = student.timesteps(self.config.training, self.recipe)
            return choices.Made(timesteps, timesteps, sampling.solver.step(self.recipe, sampling.values()))
        try:
            return sampling.make(self.config.training, self.recipe, known)
        except ValueError as error:
            raise UserError(f"The {self.name} model cannot be sampled in this way: {error}.") from error

    def drawing(self, denoiser: Preconditioned) -> dict[str, Any]:
        """What `generate` must know of the recipe. `denoiser`: the model's, or one with an average of its weights."""
        drawing = self.recipe.drawing(denoiser)
        return drawing if self.initial is None else {**drawing, "initial": self.initial}

    def fitted(self, x0: Tensor) -> Model:
        """The model with what its recipe's sampling needs of the training examples x0, in the network's units.

        That is the start if the recipe adds no noise, and the range of the data if it limits the estimate to that.
        """
        model = self
        if self.recipe.degrade is not None:
            model = replace(model, initial=GaussianStart.fit(self.recipe.degrade, x0))
        if training_choices.RECIPES[self.config.recipe].threshold == training_choices.RANGE:
            model = replace(model, limits=(self._extreme(x0, torch.amin), self._extreme(x0, torch.amax)))
        return model

    def _extreme(self, x0: Tensor, of: Callable[..., Tensor]) -> Tensor:
        """The smallest or largest values of each coordinate of poses, or of each channel of pictures."""
        clips = isinstance(self.config, MotionModel | VideoModel)
        examples = x0.flatten(0, 1) if clips else x0  # each frame counts as one
        dims = (0, 2, 3) if isinstance(self.config, Pictures) else (0,)
        return of(examples, dim=dims, keepdim=True)[0].float().cpu()

    def as_sampled(self, denoiser: Preconditioned) -> Denoiser:
        """A denoiser with the model's network, such as an average of its weights, as sampling uses it: self-conditioned or not.

        Losses that judge the model are measured with it too.
        """
        return self_condition(denoiser, SELF) if self.config.self_condition else denoiser


def shape_of(config: Config, codec: Affine | Latent, clip: ClipShape | None = None) -> tuple[int, ...]:
    """The shape of one example in the network's units."""
    if isinstance(config, Upscaler):
        return (3, config.crop, config.crop)
    if isinstance(config, MotionModel):
        assert clip is not None  # `build` is given it for this model
        return (clip.frames, 33, 3)
    if not isinstance(config, Pictures):
        return (33, 3)
    side = config.size // codec.factor
    if isinstance(codec, Tokens):
        return (side**2,)
    picture = (codec.net.latents if isinstance(codec, Latent) else 3, side, side)
    if isinstance(config, VideoModel):
        assert clip is not None
        return (clip.frames, *picture)
    return picture


def build(
    name: str,
    config: Config,
    categories: list[str],
    codec: Affine | Latent,
    margin: float,
    padded: bool = False,
    clip: ClipShape | None = None,
    text: EmbeddedText | None = None,
) -> Model:
    """An untrained model. padded: whether training pictures have padding; clip: for models of clips; text: for models with
    text."""
    shape = shape_of(config, codec, clip)
    pictured = not isinstance(config, Poses | MotionModel)
    codes = None
    if isinstance(codec, Tokens) and isinstance(config, Pictures):
        codes, side = codec.codes, config.size // codec.factor
        shape = (codec.net.latents, side, side)
    shape = shape[-3:] if pictured else shape  # of a frame, for a clip
    size = shape[-1] if pictured else 64  # simple diffusion shifts its noise by 64 / size
    recipe = config.training.make(inputs.DATA_SD, size, codes or 0)
    if config.self_condition:
        recipe = recipe.replace(loss=SelfConditioned(SELF, recipe.loss))
    if isinstance(config, VideoModel) and config.shared_noise:
        recipe = recipe.replace(noise=rng.shared(recipe.noise, config.shared_noise))
    if isinstance(config, MotionModel) and (config.velocity_loss or config.foot_contact_loss):
        recipe = _with_motion_losses(config, recipe, codec, clip)
    channels = shape[0] if pictured else shape[-1]
    conds = widths(config, len(categories), codec.factor, channels, padded, text.width if text else None)

    def build_network(maps: Sequence[str], outputs: int) -> nn.Module:
        widths_of_all = {**conds, **dict.fromkeys(maps, channels)}
        return network(config, widths_of_all, shape if pictured else None, outputs, codes)

    denoiser = recipe.denoiser(recipe.network(build_network))
    return Model(name, config, categories, denoiser, recipe, codec, margin, padded, {}, clip=clip, text=text)


def _with_motion_losses(config: MotionModel, recipe: Recipe, codec: Affine | Latent, clip: ClipShape | None) -> Recipe:
    """The recipe with the further costs that the parameters ask for. Raises UserError if its loss does not allow them."""
    if not (recipe.loss is loss or isinstance(recipe.loss, Penalised)):
        raise UserError(
            f"velocity_loss and foot_contact_loss do not go with recipe {config.recipe}: its loss is its own."
        )
    assert clip is not None
    features = partial(motion_codec.scaled_features, codec, frames=clip.frames)
    cost = motion_losses.term(config.velocity_loss, config.foot_contact_loss, float(codec.scale), clip.rate, features)
    return recipe.replace(loss=WithTerm(cost, recipe.loss))


def config_of(params: Params, name: str) -> AnyModel:
    """The section of the parameters of one of paths.MODELS, or of the motion model."""
    if name == paths.MOTION:
        return params.motion.model
    return params.pictures if name == "pictures" else params.poses


def device() -> torch.device:
    """The device to sample on: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
