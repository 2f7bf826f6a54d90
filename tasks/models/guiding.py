"""The denoiser that a model is sampled with: guided, and limited to the range of the data."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffusion_core import choices, training_choices
from diffusion_core.codecs import Latent
from diffusion_core.conditioning import KEEP, Cond
from diffusion_core.denoiser import Denoiser, Posterior, UncertainDenoiser
from diffusion_core.extras.classifier import NoisyClassifier
from diffusion_core.extras.classifier import guided as classifier_guided
from diffusion_core.extras.learned_variance import LearnedVariance, measured_variance
from diffusion_core.guidance import cfg, extrapolate, interval, negative
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.schedules import Level
from tasks.common.errors import UserError
from tasks.config.sampling import Guidance
from tasks.models.conditioning import KEYS
from tasks.models.modality import Model


def guided(
    model: Model,
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
    denoiser = model.as_sampled(model.denoiser)
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
            denoiser, model.check_same_kind(weak).as_sampled(weak.denoiser), strength, guidance.rescale
        )
    elif guidance.classifier is not None:
        if classifier is None:
            raise UserError("guidance.classifier names a classifier that is not at hand: set it to null.")
        denoiser = classifier_guided(denoiser, classifier, KEYS["category"], strength, guidance.rescale)
    elif guidance.negative_prompt is not None:
        denoiser = extrapolate(denoiser, _with_text(model, denoiser, unwanted), strength, guidance.rescale)
    elif guidance.negative is not None:
        denoiser = negative(denoiser, model.category(guidance.negative), strength, guidance.rescale)
    else:
        denoiser = cfg(denoiser, strength, *(KEYS[name] for name in guidance.without), rescale=guidance.rescale)
    return limited(model, denoiser, guidance)


def limited(model: Model, denoiser: Denoiser, guidance: Guidance | None = None) -> Denoiser:
    """The denoiser with the chosen threshold, or the recipe's own.

    Limits are in data units, or in the network's units if those are latents. Raises UserError if the threshold needs the
    range of the training data and the model does not have it.
    """
    guidance = guidance or Guidance()
    name = guidance.threshold or training_choices.RECIPES[model.config.recipe].threshold
    choice, codec = choices.THRESHOLDS[name], model.codec
    make, values = choice.make, choices.options_of(choices.THRESHOLDS, name, guidance.options)
    if choice.measured:
        if model.limits is None:
            raise UserError(
                f"The {model.name} model has no range of its training data, because an older version trained it: set "
                "guidance.threshold to none, or train it again."
            )
        return make(denoiser, {**values, "low": model.limits[0], "high": model.limits[1]})
    if "limit" not in values:
        return make(denoiser, values)
    values["limit"] = values["limit"] or 1.0
    if isinstance(codec, Latent):
        return make(denoiser, values)
    within = make(lambda x, level, cond: codec.decode(denoiser(x, level, cond)), values)
    return lambda x, level, cond: codec.encode(within(x, level, cond))


def _with_text(model: Model, denoiser: Denoiser, embedding: np.ndarray | None) -> Denoiser:
    """The denoiser with this text in place of what is asked for. Raises UserError if it is not at hand."""
    if embedding is None:
        raise UserError("guidance.negative_prompt needs the text encoder, which is not at hand: set it to null.")
    key = KEYS["text"]
    text = torch.from_numpy(embedding).to(next(model.denoiser.parameters()).device)

    def other(x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        rest = {name: value for name, value in (cond or {}).items() if name != KEEP + key}
        return denoiser(x, level, {**rest, key: text.expand(len(x), -1, -1)})

    return other


def sampling_denoiser(
    model: Model,
    guidance: Guidance,
    sampler: str,
    timesteps: Timesteps = (),
    weak: Model | None = None,
    classifier: NoisyClassifier | None = None,
    unwanted: np.ndarray | None = None,
) -> Denoiser | UncertainDenoiser:
    """`guided`, with the variance of x0 if the sampler uses it: measured, or learned if nothing guides the model."""
    uses = choices.SAMPLERS[sampler].variance
    plain = not guidance.active and guidance.threshold is None and not model.config.self_condition
    if uses == "learned" and plain and isinstance(model.denoiser, LearnedVariance):
        return _posterior(model, model.denoiser)
    denoiser = guided(model, guidance, timesteps, weak, classifier, unwanted)
    return measured_variance(denoiser, model.errors) if uses == "measured" else denoiser


def _posterior(model: Model, denoiser: LearnedVariance) -> UncertainDenoiser:
    """Mean and variance of x0, the mean within the recipe's limits."""

    def posterior(x: Tensor, level: Level, cond: Cond) -> Posterior:
        found = denoiser.posterior(x, level, cond)
        return found._replace(mean=limited(model, lambda *_: found.mean)(x, level, cond))

    return posterior
