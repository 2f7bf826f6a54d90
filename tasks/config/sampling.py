"""How a model is sampled: the keys that the stage `sample`, the command `generate` and served models have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from diffusion_core import choices, method_tables
from tasks.config.section import GuidanceScheduleName, SamplerName, Section, ThresholdName, TimestepsName

Scale = Annotated[float, Field(ge=0, le=100)]
Options = dict[str, dict[str, float | None]]  # method -> its parameters, used if that method is chosen
MODEL = "^[0-9a-f]{64}$"  # the sha256 of a model file
SNAPSHOT = r"^power_[0-9.]+-[0-9]{12}$"  # the name of a file in artifacts/<model>/snapshots


class Guidance(Section):
    """Guidance with options: classifier-free, by a weaker model, away from a category, by a classifier.

    A strength w extrapolates from an estimate that is worse, b, to the model's own, g: b + w (g - b).
    """

    scale: Scale = 1.0  # w; 1: none
    schedule: GuidanceScheduleName = "constant"  # of w over the noise levels
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None  # of sigma; null: everywhere
    without: list[str] = Field(default=[])  # b is the model without these conditions; []: without all of them
    # b is a weaker model, with all conditions: the sha256 of a model file, or one of the snapshots of `power_averages`.
    weak_model: str | None = Field(default=None, pattern=f"{MODEL}|{SNAPSHOT}")
    negative: str | None = None  # b is the model with this category instead
    negative_prompt: str | None = Field(default=None, min_length=1)  # b is the model with this text instead
    # The sha256 of a classifier of noisy examples, whose gradient takes the place of g - b.
    classifier: str | None = Field(default=None, pattern=MODEL)
    # How far the spread of the estimate is reduced to that without guidance.
    rescale: float = Field(default=0.0, ge=0, le=1)
    threshold: ThresholdName | None = None  # limits of the estimate
    options: Options = Field(default={})  # of schedules and thresholds, such as {dynamic: {quantile: 0.995}}

    @classmethod
    def of(cls, value: float | Guidance) -> Guidance:
        """The guidance with this scale, or `value` itself."""
        return value if isinstance(value, Guidance) else cls(scale=value)

    @property
    def active(self) -> bool:
        """Whether the model is evaluated more than once."""
        return self.scale != 1 or self.schedule != "constant"

    @property
    def withholds(self) -> bool:
        """Whether the model is evaluated without some conditions."""
        others = (self.weak_model, self.negative, self.negative_prompt, self.classifier)
        return self.active and others == (None, None, None, None)

    @property
    def as_json(self) -> dict[str, Any]:
        """The keys as in `params.yaml`; a negative prompt only if there is one."""
        dumped = self.model_dump()
        return (
            dumped if self.negative_prompt is not None else {k: v for k, v in dumped.items() if k != "negative_prompt"}
        )

    @model_validator(mode="after")
    def _is_consistent(self) -> Guidance:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(f"interval must be two increasing values of sigma, got {self.interval}")
        alternatives = {
            "without": self.without, "weak_model": self.weak_model, "negative": self.negative,
            "negative_prompt": self.negative_prompt, "classifier": self.classifier,
        }  # fmt: skip
        given = [name for name, value in alternatives.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: guidance has one direction")
        choices.check_options([choices.GUIDANCE_SCHEDULES, choices.THRESHOLDS], "option of guidance", self.options)
        return self


def _form(value: object) -> str:
    return "section" if isinstance(value, dict | Guidance) else "scale"


GuidanceOrScale = Annotated[Annotated[Scale, Tag("scale")] | Annotated[Guidance, Tag("section")], Discriminator(_form)]


class Start(Section):
    """Sampling that starts below the noisiest level (truncated diffusion)."""

    sigma: float = Field(gt=0, le=1000)  # in the network's units, in which data have standard deviation 0.5
    # sha256 of the model whose samples, with noise of this level, are the start; null: a normal law with the data's spread.
    model: str | None = Field(default=None, pattern=MODEL)


class SamplingChoices(Section):
    """How a model is sampled."""

    sampler: SamplerName = "unipc"
    steps: int = Field(default=choices.DEFAULT_STEPS, ge=1, le=1000)
    timesteps: TimestepsName | None = None  # the noise levels that the sampler visits; null: the recipe's own
    start: Start | None = None  # null: at pure noise
    guidance: GuidanceOrScale = 1.0  # scale of classifier-free guidance, or a section with options; 1: none
    # Parameters of samplers and timesteps by name, used if that sampler is chosen, such as {ddim: {eta: 0.5}}.
    options: Options = Field(default={})

    @property
    def guidance_options(self) -> Guidance:
        """The guidance as a section."""
        return Guidance.of(self.guidance)

    @property
    def guidance_json(self) -> float | dict[str, Any]:
        """The guidance as JSON: a scale, or a section."""
        return self.guidance.as_json if isinstance(self.guidance, Guidance) else self.guidance

    @property
    def sampling(self) -> choices.Sampling:
        """Sampler, timesteps and start as the core knows them."""
        start = None if self.start is None else self.start.sigma
        return choices.Sampling(self.sampler, self.steps, self.timesteps, start, self.options)

    @property
    def sampling_json(self) -> dict[str, Any]:
        """These keys as in `params.yaml`, without those that have their defaults."""
        keys = set(SamplingChoices.model_fields)
        dumped = self.model_dump(include=keys, exclude_defaults=True)
        return {"sampler": self.sampler, "steps": self.steps, **dumped}

    @property
    def words(self) -> dict[str, str]:
        """What is chosen, in words by key, for the card of a model and the tags of a run."""
        words = method_tables.of_sampling(self.sampling)
        if self.start is not None:
            law = "a normal law" if self.start.model is None else f"samples of the model {self.start.model}"
            words["start"] = f"{law}, with noise of sigma {self.start.sigma:g}"
        guidance = _guidance_words(self.guidance_options)
        return words | ({"guidance": guidance} if guidance else {})

    @model_validator(mode="after")
    def _choices_go_together(self) -> SamplingChoices:
        self.sampling.check()
        return self


def _guidance_words(guidance: Guidance) -> str:
    words = []
    if guidance.active:
        worse = f"the model without {', '.join(guidance.without) or 'conditions'}"
        if guidance.weak_model is not None:
            worse = f"the weaker model {guidance.weak_model}"
        elif guidance.negative is not None:
            worse = f"the category {guidance.negative}"
        elif guidance.negative_prompt is not None:
            worse = f"the text {guidance.negative_prompt!r}"
        direction = f"against {worse}"
        if guidance.classifier is not None:
            direction = f"by the classifier {guidance.classifier}"
        schedule = method_tables.described("schedule", guidance.schedule, guidance.options)
        words.append(f"{schedule}, scale {guidance.scale:g}, {direction}")
        if guidance.interval is not None:
            words.append(f"for sigma from {guidance.interval[0]:g} to {guidance.interval[1]:g}")
        if guidance.rescale:
            words.append(f"rescaled by {guidance.rescale:g}")
    if guidance.threshold is not None:
        words.append(method_tables.described("threshold", guidance.threshold, guidance.options))
    return ", ".join(words)
