"""The typed model of `params.yaml`, which holds every parameter of a run.

`load(path)` returns a `Params`, or raises `UserError` with one sentence that names the wrong key and what is allowed. The rest
of the code relies on the values.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from diffusion_core.choices import THRESHOLDS
from diffusion_core.training_choices import RECIPES
from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.adapt import Adapt
from tasks.config.classifier import Classifier
from tasks.config.codec import Codec
from tasks.config.data import Card, Curate, Extract, Mannequin, Raw, Shard
from tasks.config.distill import Distill
from tasks.config.evaluation import Fidelity, Memorization, Sample, Sampling, Tracking, Upscaling, Weights
from tasks.config.folds import Folds
from tasks.config.likelihood import Likelihood
from tasks.config.motion import Motion, MotionModel
from tasks.config.nets import PATCHLESS
from tasks.config.operations import Engine, Generate, Limits, Notify, Retrain, Services, Store
from tasks.config.recognition import Recognition
from tasks.config.sampling import SamplingChoices
from tasks.config.section import Section
from tasks.config.training import Pictures, Poses, Train
from tasks.config.upscaler import Upscaler
from tasks.config.video import Video

__all__ = [
    "Card", "Codec", "Curate", "Distill", "Engine", "Extract", "Fidelity", "Folds", "Generate", "Limits", "Mannequin",
    "Memorization", "Motion", "Params", "Pictures", "Poses", "Raw", "Recognition", "Sample", "Sampling", "Section",
    "Shard", "Tracking", "Train", "Upscaler", "Upscaling", "Video", "Weights", "edit", "load", "parse", "read_text",
    "set_value", "set_values",
]  # fmt: skip


class Params(Section):
    """All of `params.yaml`."""

    raw: Raw
    mannequin: Mannequin
    extract: Extract
    curate: Curate
    shard: Shard
    card: Card = Card()
    poses: Poses
    codec: Codec = Codec.model_validate({})
    pictures: Pictures
    distill: dict[str, Distill] = Field({})  # by the model's name
    classifier: dict[str, Classifier] = Field({})  # by the name of the model that it guides
    recognition: Recognition = Recognition()
    upscaler: Upscaler = Upscaler.model_validate({})
    folds: Folds = Folds()
    motion: Motion = Motion()
    video: Video = Video()
    base: Weights | None = None  # a published model: a folder, and its sha256 as `contrapposto base` prints it
    adapt: Adapt = Adapt()  # by method
    sample: Sampling
    memorization: Memorization
    fidelity: Fidelity
    likelihood: Likelihood = Likelihood()
    tracking: Tracking
    services: Services = Services()
    engine: Engine = Engine()
    store: Store = Store()
    limits: Limits = Limits()
    retrain: Retrain = Retrain()
    generate: Generate = Generate()
    notify: Notify = Notify()

    @model_validator(mode="after")
    def _pictures_fit_the_crop(self) -> Params:
        if self.pictures.size > self.shard.size:
            raise ValueError(f"pictures.size must be at most shard.size ({self.shard.size}), got {self.pictures.size}")
        self.pictures.training.check_size(self.pictures.size // (1 if self.codec.kind == "none" else self.codec.factor))
        if RECIPES[self.pictures.recipe].tokens and self.codec.kind != "vq" and self.pictures.start is None:
            raise ValueError(f"recipe {self.pictures.recipe} of pictures needs the codes of a codec: codec.kind vq")
        if self.codec.kind == "none":
            return self
        side, factor = self.pictures.size // self.codec.factor, self.codec.factor
        if self.pictures.size % factor or (self.pictures.net not in PATCHLESS and side % self.pictures.patch):
            raise ValueError(
                f"pictures.size must be a multiple of codec.factor times pictures.patch "
                f"({factor} x {self.pictures.patch}), got {self.pictures.size}"
            )
        if self.pictures.augment:
            raise ValueError("pictures.augment needs pixels (codec.kind: none); with a codec use pictures.copies")
        return self

    def sampled(self, model: str) -> str:
        """The name of the folder of the model that is sampled and judged: that of the model, or of its student."""
        folder: str = model if model == paths.UPSCALER else getattr(self.sample, model).model
        return folder

    @model_validator(mode="after")
    def _text_has_an_encoder(self) -> Params:
        if "text" in self.pictures.conditions and self.shard.text is None:
            raise ValueError("pictures.conditions has text, so shard.text must name a text encoder")
        return self

    @model_validator(mode="after")
    def _upscaler_begins_with_the_pictures(self) -> Params:
        size, smallest = self.upscaler.size, self.pictures.size
        if size is None:
            return self
        if size not in (2 * smallest, 4 * smallest, 8 * smallest):
            raise ValueError(f"upscaler.size must be 2, 4 or 8 times pictures.size ({smallest}), got {size}")
        if size > self.shard.size:
            raise ValueError(f"upscaler.size must be at most shard.size ({self.shard.size}), got {size}")
        if self.upscaler.crop > 2 * smallest:
            raise ValueError(
                f"upscaler.crop must be at most twice pictures.size ({smallest}), got {self.upscaler.crop}"
            )
        if self.sample.upscaler.low_noise > self.upscaler.low_noise:
            raise ValueError(
                f"sample.upscaler.low_noise must be at most upscaler.low_noise ({self.upscaler.low_noise:g}), got "
                f"{self.sample.upscaler.low_noise:g}"
            )
        try:
            self.sample.upscaler.sampling.check_recipe(self.upscaler.training)
        except ValueError as error:
            raise ValueError(f"sample.upscaler.{error}") from error
        return self

    @model_validator(mode="after")
    def _models_can_be_distilled(self) -> Params:
        for name, section in self.distill.items():
            if name not in paths.MODELS:
                raise ValueError(f"distill: there is no model {name!r}; there are {', '.join(paths.MODELS)}")
            model = self.pictures if name == "pictures" else self.poses
            if model.self_condition or model.sharded:
                key = "self_condition" if model.self_condition else "sharded"
                raise ValueError(f"distill.{name} needs {name}.{key} to be false")
            try:
                section.distillation.check_teacher(model.training)
            except ValueError as error:
                raise ValueError(f"distill.{name}: {error}") from error
        for name in paths.MODELS:
            if self.sampled(name) == paths.student(name):
                self._check_student(name)
        return self

    @model_validator(mode="after")
    def _models_can_be_classified(self) -> Params:
        for name in self.classifier:
            if name not in paths.MODELS:
                raise ValueError(f"classifier: there is no model {name!r}; there are {', '.join(paths.MODELS)}")
            model = self.pictures if name == "pictures" else self.poses
            recipe = RECIPES[model.recipe]
            if recipe.cold or recipe.tokens or recipe.mixed:
                raise ValueError(f"classifier.{name} does not go with recipe {model.recipe}")
            if "category" not in model.conditions:
                raise ValueError(f"classifier.{name} needs category in {name}.conditions")
        return self

    @model_validator(mode="after")
    def _there_is_something_to_adapt(self) -> Params:
        if self.base is None and self.adapt.published:
            raise ValueError("adapt needs base, the published model that is adapted")
        return self

    @model_validator(mode="after")
    def _video_has_what_it_needs(self) -> Params:
        if self.video.run and not self.motion.run:
            raise ValueError("video.run needs motion.run: [motion], because clips are drawn for generated motion")
        if self.video.run and self.video.clips.size < self.pictures.size:
            raise ValueError(
                f"video.clips.size must be at least pictures.size ({self.pictures.size}), got {self.video.clips.size}"
            )
        return self

    def _check_student(self, name: str) -> None:
        section = self.distill.get(name)
        if section is None:
            raise ValueError(f"sample.{name}.model is a student, but distill.{name} is missing")
        sample: Sample = getattr(self.sample, name)
        student = section.distillation.students[-1]
        for key, wanted in (
            ("sampler", student.sampler),
            ("steps", student.steps),
            ("timesteps", None),
            ("start", None),
        ):
            if getattr(sample, key) != wanted:
                given = "null" if wanted is None else wanted
                raise ValueError(f"sample.{name}.{key} must be {given} for the student, got {getattr(sample, key)}")

    @model_validator(mode="after")
    def _models_can_be_sampled_so(self) -> Params:
        try:
            check_sampling("motion.model", self.motion.model, self.motion.sample)
        except ValueError as error:
            raise ValueError(f"motion.sample.{error}") from error
        for name, model, sample in (
            ("poses", self.poses, self.sample.poses),
            ("pictures", self.pictures, self.sample.pictures),
        ):
            try:
                check_sampling(name, model, sample)
            except ValueError as error:
                raise ValueError(f"sample.{name}.{error}") from error
            if sample.prompt is not None and "text" not in model.conditions:
                raise ValueError(f"sample.{name}.prompt needs text in {name}.conditions")
            guidance, pixels = sample.guidance_options, name == "pictures" and self.codec.kind == "none"
            limit = guidance.options.get(guidance.threshold or "", {}).get("limit")
            needed = guidance.threshold is not None and "limit" in THRESHOLDS[guidance.threshold].parameters
            if needed and limit is None and not pixels:
                raise ValueError(
                    f"sample.{name}.guidance.options.{guidance.threshold}.limit is missing: only pixels have a natural limit"
                )
        return self


def check_sampling(name: str, model: Poses | Pictures | MotionModel, sample: SamplingChoices) -> None:
    """Raise ValueError, with a clause that says why, if a model that is trained in one way cannot be sampled in the other.

    `name`: of the model's section.
    """
    sample.sampling.check_recipe(model.training)
    guidance = sample.guidance_options
    unknown = [condition for condition in guidance.without if condition not in model.conditions]
    if unknown:
        raise ValueError(f"guidance.without: {unknown[0]} is not in {name}.conditions")
    for key in ("negative", "classifier"):
        if getattr(guidance, key) is not None and "category" not in model.conditions:
            raise ValueError(f"guidance.{key} needs category in {name}.conditions")
    if guidance.negative_prompt is not None and "text" not in model.conditions:
        raise ValueError(f"guidance.negative_prompt needs text in {name}.conditions")
    recipe = RECIPES[model.recipe]
    if guidance.classifier is not None and (recipe.cold or recipe.tokens or recipe.mixed):
        raise ValueError(f"guidance.classifier does not go with recipe {model.recipe}")
    if guidance.threshold is not None and THRESHOLDS[guidance.threshold].measured:
        fitting = [name for name, choice in RECIPES.items() if choice.threshold == guidance.threshold]
        if model.recipe not in fitting:
            raise ValueError(f"guidance.threshold {guidance.threshold} needs one of the recipes {', '.join(fitting)}")
    if not guidance.withholds:
        return
    if not model.conditions:
        raise ValueError(f"guidance needs a condition in {name}.conditions, or must be 1")
    all_withheld = not guidance.without or set(guidance.without) == set(model.conditions)
    if not (model.condition_dropout_each or (all_withheld and model.condition_dropout)):
        key = "condition_dropout" if all_withheld else "condition_dropout_each"
        raise ValueError(f"guidance needs {name}.{key} above 0, or must be 1")


def validation_sentence(error: dict[str, Any], name: str, data: Any) -> str:
    """One of pydantic's errors in `data` as a sentence that names the key."""
    key = ".".join(_keys(error, data)) or "the file"
    if error["type"] == "extra_forbidden":
        return f"{name}: {key} is not a known key."
    if error["type"] == "missing":
        return f"{name}: {key} is missing."
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error" and not error["loc"]:
        return f"{name}: {message}."
    if error["type"] == "value_error":
        return f"{name}: {key}: {message}."
    return f"{name}: {key} {message}, got {error['input']!r}."


def _keys(error: dict[str, Any], data: Any) -> Iterator[str]:
    """The keys on the way to the value with the error. Pydantic puts the names of alternatives between them."""
    missing = error["loc"][-1] if error["type"] == "missing" else None
    for part in error["loc"]:
        if isinstance(data, Mapping) and (part in data or part == missing):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part]
        else:
            continue
        yield str(part)


def read_text(path: Path) -> str:
    """The text of the file. Raises UserError if it is missing, cannot be read, or is not UTF-8."""
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        text = data.decode("utf-8-sig")  # editors on Windows put a byte order mark first
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path.name} is not UTF-8 text (line {line}): save it with the encoding UTF-8.") from error
    if "\0" in text:
        raise UserError(f"{path.name} is not UTF-8 text: save it with the encoding UTF-8.")  # UTF-16, most likely
    return text


def _mapping(yaml: YAML, text: str, name: str) -> dict[str, Any]:
    """The sections in a YAML text. Raises UserError if it is not valid YAML or not a mapping."""
    try:
        data = yaml.load(io.StringIO(text))
    except RecursionError as error:
        raise UserError(f"{name} is not valid YAML: it is nested too deeply.") from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{name} is not valid YAML{line}: {problem}.") from error
    if not isinstance(data, dict):
        raise UserError(f"{name} must be a mapping of sections, got {type(data).__name__}.")
    return data


def parse(text: str, name: str = "params.yaml") -> Params:
    """The parameters in a YAML 1.2 text (the version that DVC reads). Raises UserError that names the first wrong key."""
    data = _mapping(YAML(typ="safe", pure=True), text, name)
    for key, value in _texts(data, ()):
        if not _can_be_written(value):
            raise UserError(f"{name}: {'.'.join(key)} has characters that no file can hold: {value!a}.")
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), name, data)) from error


def _texts(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text in the data, with the way to it."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, (*key, str(name)))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def _can_be_written(text: str) -> bool:
    """Whether the text is without null characters, which no file name can have, and without lone surrogates."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def load(path: Path) -> Params:
    """The parameters in the file. Raises UserError if it is missing, not YAML, or has a wrong key or value."""
    return parse(read_text(path), path.name)


def set_value(path: Path, key: str, value: Any) -> None:
    """Write one dotted key into the file, see `set_values`."""
    set_values(path, {key: value})


def set_values(path: Path, values: Mapping[str, Any]) -> None:
    """Write dotted keys into the file and keep its comments.

    Raises UserError, and writes nothing, if the result is not valid.
    """
    before = read_text(path)
    after = edit(before, values, path.name)
    parse(after, path.name)
    if after != before:
        files.write_bytes(path.resolve(), after.encode())  # if it is a link, the file behind it


def edit(text: str, values: Mapping[str, Any], name: str = "params.yaml") -> str:
    """The YAML text with dotted keys set to new values and its comments kept; the same text if nothing changes."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    document = _mapping(yaml, text, name)
    changed = False
    for key, value in values.items():
        *sections, last = key.split(".")
        node = document
        for section in sections:
            if not isinstance(node.get(section), dict):
                node[section] = {}
            node = node[section]
        if node.get(last) != value:
            node[last], changed = value, True
    if not changed:
        return text
    edited = io.StringIO()
    yaml.dump(document, edited)
    return edited.getvalue()
