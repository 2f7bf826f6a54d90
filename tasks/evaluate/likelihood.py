"""Bits per dimension: how well a model predicts data that it has not seen, as an estimate with its standard error.

Numbers of models are comparable if they are of the same data, the same `sigma_min` and, for pictures, the same codec:

    poses                  of the density, in bits a coordinate, with the torso as the unit of length. Some coordinates follow
                           from others (the hips are the origin), so that the density has no bound: `sigma_min` limits it
    pictures, no codec     of the probability of the 8-bit value, in bits a pixel and colour
    pictures, codec        of the density of the latents, in bits a latent, in the network's units

Both estimators are of `diffusion_core`: the variational bound (`extras.vdm.bits_per_dim`), an upper bound, whose levels are
drawn as training examples make best, and the exact likelihood of the probability flow (`sampling.ode.log_likelihood`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_core import rng, schedules
from diffusion_core.codecs import Affine
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.extras import likelihood
from diffusion_core.extras.vdm import bits_per_dim
from diffusion_core.sampling import ode
from diffusion_core.schedules import Level, expand_like, logsnr_level
from tasks import paths
from tasks.common.errors import DataError
from tasks.config.likelihood import Likelihood
from tasks.config.params import Params, Pictures, Upscaler
from tasks.evaluate import model_examples
from tasks.models import modality, model_file
from tasks.models.inputs import DATA_SD, Examples
from tasks.models.modality import Model

SIGMA_MAX = 80.0  # in the network's units: there nothing is left of the data
PILOT = 128  # training examples on which the levels are chosen, and the decoder is fitted
PIECES = 28  # of the range of log-SNRs, in each of which the density of the levels is constant
BATCH = 64
FITTED, RATE = 150, 0.01  # steps and learning rate of a mixture of logistics
LEVELS = 256  # values of a colour


@dataclass(frozen=True)
class Units:
    """The least and the most noise as log-SNRs in the units of the data, and the decoder there."""

    highest: float
    lowest: float
    decoder: likelihood.Decoder


def why_not(model: Model) -> str | None:
    """Why a model has no bits per dimension, as a sentence; None if it has."""
    recipe = model.config.recipe
    if isinstance(model.config, Upscaler):
        return "The upscaler is judged by its pictures."
    if model.student is not None:
        return f"A student of {model.student.method} distillation is no denoiser at every noise level."
    of_recipe = model.recipe
    if of_recipe.degrade is not None or of_recipe.codes is not None or of_recipe.nets is not None:
        return f"Recipe {recipe} is not defined by a denoiser of normal noise."
    return None


def in_data_units(denoiser: Denoiser, codec: Affine) -> Denoiser:
    """A denoiser of z = (x0 - mean) / scale as one of x0: noise of sigma on x0 is noise of sigma / scale on z."""

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        scale = codec.scale.to(x)
        own = logsnr_level(level.logsnr.to(x.device) + 2 * scale.log().double())
        z = expand_like(own.a, x).to(x) * codec.encode(x / expand_like(level.a, x).to(x))
        return codec.decode(denoiser(z, own, cond))

    return denoise


def measure(model: Model, train: Examples, examples: Examples, settings: Likelihood) -> tuple[float, float]:
    """Bits per dimension of examples in data units and the standard error. `train`: on which levels and decoder are chosen."""
    codec = model.codec
    denoiser = model.as_sampled(model.denoiser)
    if not isinstance(codec, Affine):
        train, examples = (Examples(codec.encode(some.x0), some.cond) for some in (train, examples))
        codec = Affine(torch.zeros(()), torch.ones(()))
    discrete = isinstance(model.config, Pictures) and codec is model.codec
    return bits(denoiser, codec, train, examples, settings, discrete)


def bits(
    denoiser: Denoiser, codec: Affine, train: Examples, examples: Examples, settings: Likelihood, discrete: bool
) -> tuple[float, float]:
    """Mean and standard error of the bits per dimension of examples in the units that `codec` encodes.

    `denoiser` works in those that it encodes to, where data have the standard deviation DATA_SD. `discrete`: the values are
    LEVELS numbers from -1 to 1.
    """
    if settings.estimator == "ode":
        return likelihood.mean_and_error(_by_ode(denoiser, codec, examples, settings))
    shift = 2 * math.log(float(codec.scale))
    units = Units(
        -2 * math.log(settings.sigma_min) - shift, -2 * math.log(SIGMA_MAX) - shift, likelihood.normal_decoder
    )
    denoise = in_data_units(denoiser, codec)
    pilot = train.some(PILOT)
    if discrete:
        decoder = _decoder(settings, train, units.highest)
        units = Units(units.highest, units.lowest, decoder)
    schedule = schedules.logsnr(units.highest, units.lowest)
    ends = units.highest, units.lowest
    pilot_seed = rng.fold(settings.seed, 1)
    levels = likelihood.important_levels(denoise, pilot.x0.double(), schedule, pilot_seed, pilot.cond, PIECES, *ends)
    parts = [
        bits_per_dim(
            denoise, x0.double(), schedule, rng.fold(settings.seed, 2, number), cond, settings.draws, *ends,
            units.decoder, levels,
        )
        for number, (x0, cond) in enumerate(_batches(examples))
    ]  # fmt: skip
    return likelihood.mean_and_error(torch.cat(parts))


def _batches(examples: Examples) -> list[tuple[Tensor, Cond]]:
    rows = torch.arange(len(examples)).split(BATCH)
    return [(examples.x0[some], {key: value[some] for key, value in examples.cond.items()}) for some in rows]


def _by_ode(denoiser: Denoiser, codec: Affine, examples: Examples, settings: Likelihood) -> Tensor:
    """-log2 p a dimension of examples with noise of sigma_min, by the probability flow, in the units of the data."""
    start, end = (
        Level(torch.tensor(1.0, dtype=torch.float64), torch.tensor(sigma, dtype=torch.float64))
        for sigma in (settings.sigma_min, SIGMA_MAX)
    )
    parts = []
    for number, (x0, cond) in enumerate(_batches(examples)):
        z = codec.encode(x0).double()
        ids = torch.arange(len(z), device=z.device)
        noisy = z + settings.sigma_min * rng.normal(z.shape[1:], rng.fold(settings.seed, 3, number), ids).to(z)
        log_p = ode.log_likelihood(denoiser, noisy, start, end, DATA_SD, cond)
        parts.append(-log_p / (math.log(2) * z[0].numel()) + math.log2(float(codec.scale)))
    return torch.cat(parts)


def _decoder(settings: Likelihood, train: Examples, highest: float) -> likelihood.Decoder:
    if settings.decoder == "discrete":
        return likelihood.discrete_decoder(LEVELS)
    if settings.decoder == "logistic":
        return likelihood.logistic_decoder(LEVELS)
    return _fitted_mixture(train, logsnr_level(torch.tensor(highest, dtype=torch.float64)), settings.seed)


def _fitted_mixture(train: Examples, least: Level, seed: int) -> likelihood.LogisticMixture:
    """A mixture of 5 logistics whose parameters one convolution gives, fitted to training pictures at the least noise."""
    channels = train.x0.shape[1]
    net = nn.Conv2d(channels, likelihood.LogisticMixture.parameters_of(channels, 5), 3, padding=1).to(train.x0.device)
    nn.init.zeros_(net.weight)
    drawn = 0.1 * rng.normal((net.out_channels,), rng.fold(seed, 4), torch.zeros(1, dtype=torch.int64))
    net.bias = nn.Parameter(drawn[0].to(train.x0))  # the components must differ
    mixture = likelihood.LogisticMixture(net, channels, 5, LEVELS)
    optimiser = torch.optim.Adam(mixture.parameters(), lr=RATE)
    for step in range(FITTED):
        ids = torch.arange(step * 16, (step + 1) * 16, device=train.x0.device)
        x0 = train.x0[ids % len(train)]
        noise = rng.normal(x0.shape[1:], rng.fold(seed, 5), ids).to(x0)
        loss = -mixture(x0, least.corrupt(x0, noise), least, x0).mean() / x0[0].numel()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return mixture.requires_grad_(False)


def run(params: Params, root: Path) -> dict[str, Any]:
    """The flat `metrics` of the models that `likelihood.models` names, a `sentence` of each, and why one is `absent`.

    Metrics: `MODEL.bits_per_dim` and `_error` of held-out examples, and the same with `_train` of training examples.
    """
    settings = params.likelihood
    metrics: dict[str, float] = {}
    sentences: dict[str, str] = {}
    absent: dict[str, str] = {}
    for name in settings.models:
        model = model_file.load(paths.model_folder(root, params.sampled(name)), modality.device())
        reason = why_not(model)
        if reason is not None:
            absent[name] = reason
            continue
        train, held_out = (model_examples.of_splits(root, model, *splits) for splits in (("train",), ("val", "test")))
        if min(len(train), len(held_out)) < 2:
            absent[name] = "There are too few examples."
            continue
        for suffix, some in (("", held_out), ("_train", train)):
            with model.autocast():
                value, error = measure(model, train, some.some(settings.count), settings)
            if not math.isfinite(value):
                raise DataError(f"The {name} model gives bits per dimension that are not finite.")
            metrics |= {f"{name}.bits_per_dim{suffix}": value, f"{name}.bits_per_dim_error{suffix}": error}
        sentences[name] = _sentence(metrics, name, settings, model)
    return {"metrics": metrics, "sentences": sentences, "absent": absent}


def _sentence(metrics: dict[str, float], name: str, settings: Likelihood, model: Model) -> str:
    value, error, train = (metrics[f"{name}.bits_per_dim{end}"] for end in ("", "_error", "_train"))
    least = f"the least noise is {settings.sigma_min:g}"
    if name == "poses":
        unit = f"a coordinate (a density, with the torso as the unit; {least})"
    elif isinstance(model.codec, Affine):
        unit = f"a pixel and colour ({settings.decoder} decoder; {least})"
    else:
        unit = f"a latent (a density in the network's units; {least})"
    kind = "exact for its ODE" if settings.estimator == "ode" else "an upper bound"
    return f"{value:.3f} +- {error:.3f} bits {unit} of held-out data, {kind}; {train:.3f} of training data."
