"""The models of a run: their examples, their networks, and the file a trained one lives in.

    poses      x0 = one pose, 33 joint tokens of 3 numbers, given its category
    pictures   x0 = one picture, 3 channels, given its category and its pose (`conditions` says in which forms)
    motion     x0 = one clip, frames of 33 joints of 3 numbers, given its category, first pose and path (`tasks.models.motion`);
               only if motion.run says so
    video      x0 = one clip, frames of 3 channels, given its category and the poses in its frames (`tasks.models.video`); only
               if video.run says so

With a codec, the network of `pictures` works on latents, and everything outside of it on pixels. A third model, the upscaler,
is built and stored here too; `tasks/models/upscaler.py` has the rest of it.

`artifacts/<model>/model.safetensors` holds the averaged weights, the codec, and as JSON everything to build it again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from diffusion_core import choices, training_choices
from diffusion_core.codecs import Affine, Latent, Tokens
from diffusion_core.conditioning import KEEP, PADDING, Cond
from diffusion_core.denoiser import Denoiser, Posterior, Preconditioned, UncertainDenoiser
from diffusion_core.distill_choices import Student
from diffusion_core.error_curve import ErrorCurve
from diffusion_core.extras.classifier import NoisyClassifier
from diffusion_core.extras.classifier import guided as classifier_guided
from diffusion_core.extras.corruptions import GaussianStart
from diffusion_core.extras.learned_variance import LearnedVariance, measured_variance
from diffusion_core.guidance import cfg, extrapolate, interval, negative, self_condition
from diffusion_core.losses import Penalised, SelfConditioned, WithTerm, loss
from diffusion_core.recipe import Recipe
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.schedules import Level
from diffusion_core.training import compute, parallel
from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError, UserError
from tasks.common.skeleton import mirror
from tasks.common.subset import evenly_spaced
from tasks.config.motion import MotionModel
from tasks.config.params import Params, Pictures, Poses, Upscaler
from tasks.config.sampling import Guidance, SamplingChoices
from tasks.config.text import TextEncoder
from tasks.config.video import VideoModel
from tasks.dataset import frames
from tasks.dataset.padding import padding_maps
from tasks.dataset.shards import ShardDataset
from tasks.models import codec as stored_codec
from tasks.models import motion, motion_losses, video
from tasks.models.build import network
from tasks.models.conditioning import KEYS, SELF, AnyModel, at_latents, conditions, weights, widths

DATA_SD = 0.5  # standard deviation of what the networks see, EDM's convention
Config = AnyModel | Upscaler
# Model -> its section of the parameters.
KINDS: dict[str, Callable[..., Config]] = {
    "poses": Poses,
    "pictures": Pictures,
    paths.UPSCALER: Upscaler,
    paths.MOTION: MotionModel,
    paths.VIDEO: VideoModel,
}
SCHEDULE = "schedule."  # prefix of the weights of a learned noise schedule
ERRORS = "errors"  # key of the measured errors in a model's file
STUDENT = "student"  # key of what a distilled model learned in its file
INITIAL = "initial."  # prefix of the tensors of a `GaussianStart`
LIMITS = ("limits.low", "limits.high")


@dataclass(frozen=True)
class Examples:
    """Examples in memory: x0 `[n, *S]` and their conditions."""

    x0: Tensor
    cond: Cond

    def __len__(self) -> int:
        return len(self.x0)

    def some(self, count: int) -> Examples:
        """At most `count` of them, evenly spaced."""
        rows = torch.tensor(evenly_spaced(len(self), count), dtype=torch.int64)
        return Examples(self.x0[rows], {key: value[rows] for key, value in self.cond.items()})


def fit_codec(x0: Tensor, per_coordinate: bool) -> Affine:
    """The codec between data units and the network's units. Raises DataError if all examples are the same."""
    try:
        return Affine.fit(x0, DATA_SD, per_coordinate)
    except ValueError as error:
        raise DataError("All training examples are the same: there is nothing to learn.") from error


def usable(root: Path, split: str, config: AnyModel) -> ShardDataset:
    """The samples of a split that a model can use: for `pictures`, those that have a picture; for others, clips."""
    if isinstance(config, VideoModel):
        return ShardDataset(root / paths.VIDEO_CLIPS, split)
    if isinstance(config, MotionModel):
        return ShardDataset(root / paths.CLIPS, split)
    dataset = ShardDataset(root / paths.SHARDS, split)
    return dataset.pictured() if isinstance(config, Pictures) else dataset


def as_pictures(values: Tensor) -> np.ndarray:
    """Pictures uint8 `[n, s, s, 3]` from data units, `[n, 3, s, s]` in -1 ... 1."""
    return ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def as_clips(values: Tensor) -> np.ndarray:
    """Clips uint8 `[n, frames, s, s, 3]` from data units, `[n, frames, 3, s, s]` in -1 ... 1."""
    return as_pictures(values.flatten(0, 1)).reshape(*values.shape[:2], *values.shape[-2:], 3)


def _pictures(dataset: ShardDataset, config: Pictures) -> Tensor:
    clips = isinstance(config, VideoModel)
    pixels = frames.read(dataset, config.size) if clips else dataset.pictures_uint8(config.size)
    return torch.from_numpy(pixels).movedim(-1, -3).float() / 127.5 - 1


def examples(
    dataset: ShardDataset,
    config: AnyModel,
    categories: list[str],
    mirrored: bool,
    factor: int = 1,
    padded: bool = False,
) -> Examples:
    """The n examples of a split in data units; with `mirrored`, 2 n: the mirror image of example i is example n + i.

    Pose maps have the resolution of a codec's latents, if its factor is given. With `padded`, the conditions of pictures say
    where padding is.

    A mirror image exchanges left and right: x of the landmarks changes sign, landmarks change names, the picture is flipped.
    Captions stay as they are.
    """
    if isinstance(config, MotionModel):
        return _clips(dataset, config, categories, mirrored)
    metas = dataset.metas()
    poses = dataset.clips() if isinstance(config, VideoModel) else dataset.poses()
    names = [meta["category"] for meta in metas]
    margin = dataset.about["margin"]
    text = dataset.texts() if "text" in config.conditions else None
    cond, flipped_cond = (
        conditions(config, categories, margin, names, p, factor, text) for p in (poses, mirror(poses))
    )
    if isinstance(config, Pictures):
        x0 = _pictures(dataset, config)
        flipped = x0.flip(-1)
        if padded:
            clips = isinstance(config, VideoModel)
            padding = video.padding(metas, config.size, x0.shape[1]) if clips else padding_maps(metas, config.size)
            cond |= at_latents({PADDING: padding}, factor)
            flipped_cond |= at_latents({PADDING: padding.flip(-1)}, factor)
    else:
        x0, flipped = torch.from_numpy(poses), torch.from_numpy(mirror(poses))
    if not mirrored:
        return Examples(x0, cond)
    return Examples(torch.cat([x0, flipped]), {key: torch.cat([cond[key], flipped_cond[key]]) for key in cond})


def _clips(dataset: ShardDataset, config: MotionModel, categories: list[str], mirrored: bool) -> Examples:
    x0, known, names = motion.clip_examples(dataset, mirrored)
    cond = conditions(config, categories, 0.0, names)
    return Examples(x0, {**cond, **motion.maps(config, x0, known), **motion.path_weight(x0, known)})


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

    def examples(self, dataset: ShardDataset) -> Examples:
        """The examples of a split in data units, with conditions as the network gets them; padding has no weight.

        Not for the upscaler.
        """
        assert not isinstance(self.config, Upscaler)
        out = examples(
            dataset, self.config, self.categories, mirrored=False, factor=self.codec.factor, padded=self.padded
        )
        return Examples(out.x0, weights(out.cond, 0.0))

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

    def guided(
        self,
        guidance: Guidance | float,
        timesteps: Timesteps = (),
        weak: Model | None = None,
        classifier: NoisyClassifier | None = None,
        unwanted: np.ndarray | None = None,
    ) -> Denoiser:
        """The denoiser to sample with under guidance, or classifier-free guidance of this scale (1: none).

        `timesteps`: those of the sampler, for a schedule that depends on them. `weak`: the model that `guidance.weak_model`
        names, `classifier` the one that `guidance.classifier` names, `unwanted` the embedding `[1, length, width]` of
        `guidance.negative_prompt`. Raises UserError if the model does not know the negative
        category or `weak` is another kind of model.
        """
        guidance = Guidance.of(guidance)
        denoiser = self.as_sampled(self.denoiser)
        schedule, options = guidance.schedule, guidance.options
        strength = choices.GUIDANCE_SCHEDULES[schedule].make(
            guidance.scale, choices.options_of(choices.GUIDANCE_SCHEDULES, schedule, options), timesteps
        )
        if guidance.interval is not None:
            strength = interval(strength, *guidance.interval)
        if guidance.weak_model is not None:
            if weak is None:
                raise UserError("guidance.weak_model names a model that is not at hand: set it to null.")
            denoiser = extrapolate(
                denoiser, self.check_same_kind(weak).as_sampled(weak.denoiser), strength, guidance.rescale
            )
        elif guidance.classifier is not None:
            if classifier is None:
                raise UserError("guidance.classifier names a classifier that is not at hand: set it to null.")
            denoiser = classifier_guided(denoiser, classifier, KEYS["category"], strength, guidance.rescale)
        elif guidance.negative_prompt is not None:
            denoiser = extrapolate(denoiser, self._with_text(denoiser, unwanted), strength, guidance.rescale)
        elif guidance.negative is not None:
            denoiser = negative(denoiser, self.category(guidance.negative), strength, guidance.rescale)
        else:
            denoiser = cfg(denoiser, strength, *(KEYS[name] for name in guidance.without), rescale=guidance.rescale)
        return self.limited(denoiser, guidance)

    def limited(self, denoiser: Denoiser, guidance: Guidance | None = None) -> Denoiser:
        """The denoiser with the chosen threshold, or the recipe's own.

        Limits are in data units, or in the network's units if those are latents. Raises UserError if the threshold needs the
        range of the training data and the model does not have it.
        """
        guidance = guidance or Guidance()
        name = guidance.threshold or training_choices.RECIPES[self.config.recipe].threshold
        choice, codec = choices.THRESHOLDS[name], self.codec
        make, values = choice.make, choices.options_of(choices.THRESHOLDS, name, guidance.options)
        if choice.measured:
            if self.limits is None:
                raise UserError(
                    f"The {self.name} model has no range of its training data, because an older version trained it: set "
                    "guidance.threshold to none, or train it again."
                )
            return make(denoiser, {**values, "low": self.limits[0], "high": self.limits[1]})
        if "limit" not in values:
            return make(denoiser, values)
        values["limit"] = values["limit"] or 1.0
        if isinstance(codec, Latent):
            return make(denoiser, values)
        limited = make(lambda x, level, cond: codec.decode(denoiser(x, level, cond)), values)
        return lambda x, level, cond: codec.encode(limited(x, level, cond))

    def _with_text(self, denoiser: Denoiser, embedding: np.ndarray | None) -> Denoiser:
        """The denoiser with this text in place of what is asked for. Raises UserError if it is not at hand."""
        if embedding is None:
            raise UserError("guidance.negative_prompt needs the text encoder, which is not at hand: set it to null.")
        key = KEYS["text"]
        text = torch.from_numpy(embedding).to(next(self.denoiser.parameters()).device)

        def other(x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
            rest = {name: value for name, value in (cond or {}).items() if name != KEEP + key}
            return denoiser(x, level, {**rest, key: text.expand(len(x), -1, -1)})

        return other

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
        )
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

    def sampling_denoiser(
        self,
        guidance: Guidance,
        sampler: str,
        timesteps: Timesteps = (),
        weak: Model | None = None,
        classifier: NoisyClassifier | None = None,
        unwanted: np.ndarray | None = None,
    ) -> Denoiser | UncertainDenoiser:
        """`guided`, with the variance of x0 if the sampler uses it: measured, or learned if nothing guides the model."""
        uses = choices.SAMPLERS[sampler].variance
        plain = not guidance.active and guidance.threshold is None and not self.config.self_condition
        if uses == "learned" and plain and isinstance(self.denoiser, LearnedVariance):
            return self._posterior(self.denoiser)
        guided = self.guided(guidance, timesteps, weak, classifier, unwanted)
        return measured_variance(guided, self.errors) if uses == "measured" else guided

    def drawing(self, denoiser: Preconditioned) -> dict[str, Any]:
        """What `generate` must know of the recipe. `denoiser`: the model's, or one with an average of its weights."""
        drawing = self.recipe.drawing(denoiser)
        return drawing if self.initial is None else {**drawing, "initial": self.initial}

    def _posterior(self, denoiser: LearnedVariance) -> UncertainDenoiser:
        """Mean and variance of x0, the mean within the recipe's limits."""

        def posterior(x: Tensor, level: Level, cond: Cond) -> Posterior:
            found = denoiser.posterior(x, level, cond)
            return found._replace(mean=self.limited(lambda *_: found.mean)(x, level, cond))

        return posterior

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
    recipe = config.training.make(DATA_SD, size, codes or 0)
    if config.self_condition:
        recipe = recipe.replace(loss=SelfConditioned(SELF, recipe.loss))
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
    cost = motion_losses.term(config.velocity_loss, config.foot_contact_loss, float(codec.scale), clip.rate)
    return recipe.replace(loss=WithTerm(cost, recipe.loss))


def learned_schedule(recipe: Recipe) -> dict[str, Tensor]:
    """The weights of a learned noise schedule, which sampling needs besides the denoiser; empty if it is not learned.

    With sharded weights all ranks must call this.
    """
    if not isinstance(recipe.density, nn.Module):
        return {}
    return {f"{SCHEDULE}{name}": parallel.full_tensor(value) for name, value in recipe.density.state_dict().items()}


def save(folder: Path, model: Model, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the model into a folder. `weights`: of the denoiser, and what `learned_schedule` gives."""
    about = {
        "model": model.name,
        "config": model.config.model_dump(),
        "categories": model.categories,
        "margin": model.margin,
        "padded": model.padded,
        "codec": stored_codec.description(model.codec),
        **({STUDENT: model.meta[STUDENT]} if STUDENT in model.meta else {}),
        **({"clip": list(model.clip)} if model.clip else {}),
        **({"text": {**model.text.encoder.model_dump(), "width": model.text.width}} if model.text else {}),
        **meta,
    }
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    if model.initial is not None:
        tensors |= {f"{INITIAL}mean": model.initial.mean, f"{INITIAL}factors": model.initial.factors}
    if model.limits is not None:
        tensors |= dict(zip(LIMITS, model.limits, strict=True))
    checkpoint.save(folder / paths.MODEL_FILE, tensors | stored_codec.tensors(model.codec), about)


def load(folder: Path, device: torch.device) -> Model:
    """The trained model in a folder, in evaluation mode.

    Raises DataError if the file is missing, damaged, or written by another version.
    """
    tensors, meta = checkpoint.load(folder / paths.MODEL_FILE)
    try:
        config = KINDS[meta["model"]](**meta["config"])
    except ValidationError as error:
        raise DataError(
            f"{folder / paths.MODEL_FILE} was written by another version: its parameters are not known."
        ) from error
    codec = stored_codec.from_tensors(tensors, meta.get("codec"))
    if training_choices.RECIPES[config.recipe].tokens and isinstance(codec, Latent):
        codec = Tokens.of(codec)
    clip = ClipShape(*meta["clip"]) if "clip" in meta else None
    about = dict(meta["text"]) if "text" in meta else None
    text = EmbeddedText(width=about.pop("width"), encoder=TextEncoder(**about)) if about else None
    model = build(
        meta["model"], config, meta["categories"], codec, meta["margin"], meta.get("padded", False), clip, text
    )
    weights = {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}
    schedule = {key.removeprefix(SCHEDULE): weights.pop(key) for key in list(weights) if key.startswith(SCHEDULE)}
    if isinstance(model.recipe.density, nn.Module):
        model.recipe.density.load_state_dict(schedule)
    missing, unexpected = model.denoiser.load_state_dict(weights, strict=False)  # buffers are not in the file
    if unexpected or set(missing) & {name for name, _ in model.denoiser.named_parameters()}:
        raise DataError(
            f"{folder / paths.MODEL_FILE} was written by another version: its weights do not fit the network."
        )
    model.denoiser.to(device).eval().requires_grad_(False)
    initial = GaussianStart(tensors[f"{INITIAL}mean"], tensors[f"{INITIAL}factors"]) if model.recipe.degrade else None
    limits = (tensors[LIMITS[0]], tensors[LIMITS[1]]) if LIMITS[0] in tensors else None
    return replace(model, meta=meta, initial=initial, limits=limits)


def with_weights(model: Model, weights: dict[str, Tensor], device: torch.device) -> Model:
    """The model with other weights of its denoiser, such as a snapshot of its training, in evaluation mode on a device."""
    other = build(
        model.name, model.config, model.categories, model.codec, model.margin, model.padded, model.clip, model.text
    )
    other.denoiser.load_state_dict(weights, strict=False)  # some files have no buffers
    other.denoiser.to(device).eval().requires_grad_(False)
    return replace(other, meta=model.meta, initial=model.initial, limits=model.limits)


def config_of(params: Params, name: str) -> AnyModel:
    """The section of the parameters of one of paths.MODELS, or of the motion model."""
    if name == paths.MOTION:
        return params.motion.model
    return params.pictures if name == "pictures" else params.poses


def device() -> torch.device:
    """The device to sample on: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
