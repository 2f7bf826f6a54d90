"""Guidance: functions that take denoisers and return a denoiser. All of them change the estimate of x0.

A guidance strength is a number or a function of the noise level (`interval`, `ramp`, `oscillate`). At a level `[B]` such a
function returns one strength for each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond, without
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level, expand_like

Strength = float | Callable[[Level], float | Tensor]


def strength_at(strength: Strength, level: Level) -> float | Tensor:
    """The strength at a level: a number, or `[B]`."""
    return strength(level) if callable(strength) else strength


def extrapolate(good: Denoiser, bad: Denoiser, strength: Strength, rescale: float = 0.0) -> Denoiser:
    """bad + w (good - bad): strength w = 1 gives `good`, a larger w extrapolates beyond it.

    This is autoguidance (Karras et al. 2024, arXiv 2406.02507) if `bad` is a smaller or less trained model. `bad` is not
    evaluated where w is 1. `rescale`: share by which the result is drawn to the standard deviation of `good`, see `rescaled`.
    """

    def guided(x: Tensor, level: Level, cond: Cond) -> Tensor:
        w = strength_at(strength, level)
        if isinstance(w, Tensor):
            if bool((w == 1).all()):
                return good(x, level, cond)
            w = expand_like(w, x)
        elif w == 1:
            return good(x, level, cond)
        bad_x0 = bad(x, level, cond)
        good_x0 = good(x, level, cond)
        x0 = bad_x0 + w * (good_x0 - bad_x0)
        return rescaled(x0, good_x0, rescale) if rescale else x0

    return guided


def unconditional(denoiser: Denoiser, *names: str) -> Denoiser:
    """The denoiser with the named conditions withheld; if no name is given, all conditions."""
    return lambda x, level, cond: denoiser(x, level, without(cond, *names))


def cfg(denoiser: Denoiser, strength: Strength, *names: str, rescale: float = 0.0) -> Denoiser:
    """Classifier-free guidance; strength 1 means no guidance. Ho & Salimans 2022 (arXiv 2207.12598).

    Extrapolating x0 is the same as extrapolating eps, v or the velocity. If names are given, only these conditions are
    withheld from the second evaluation; nested calls then give each condition its own strength (Brooks et al. 2023, arXiv
    2211.09800).
    """
    return extrapolate(denoiser, unconditional(denoiser, *names), strength, rescale)


def negative(denoiser: Denoiser, unwanted: Cond, strength: Strength, rescale: float = 0.0) -> Denoiser:
    """Guidance away from an unwanted condition: the negative prompt. Liu et al. 2022 (arXiv 2206.01714), section 4, "NOT"."""
    return extrapolate(denoiser, lambda x, level, cond: denoiser(x, level, {**cond, **unwanted}), strength, rescale)


def interval(strength: Strength, low: float, high: float) -> Strength:
    """The strength where low < sigma <= high, and 1 elsewhere. Kynkaanniemi et al. 2024 (arXiv 2404.07724)."""

    def limited(level: Level) -> float | Tensor:
        inside = (low < level.sigma) & (level.sigma <= high)
        return _number(torch.where(inside, torch.as_tensor(strength_at(strength, level)).to(level.sigma), 1.0))

    return limited


def ramp(first: float, last: float) -> Strength:
    """Linear in the angle, from `first` at pure noise to `last` at no noise. Muse (arXiv 2301.00704), section 2.7."""
    return lambda level: _number(last + (first - last) * level.angle / (math.pi / 2))


def oscillate(levels: Sequence[Level], high: float, low: float, start: int) -> Strength:
    """`high` at the first `start` timesteps, then alternately `low` and `high`. Ho et al. 2022 (arXiv 2210.02303), section 3.2.

    A level that is not a timestep, for example one raised by `timesteps.churn`, counts as the next less noisy timestep.
    """
    sigmas = torch.stack([level.sigma for level in levels]).double()

    def strength(level: Level) -> float | Tensor:
        sigma = level.sigma.double() * (1 + 1e-9)
        i = (sigmas.to(sigma.device) > sigma[..., None]).sum(-1)
        return _number(torch.where((i < start) | ((i - start) % 2 == 1), high, low).to(sigma))

    return strength


def _number(value: Tensor) -> float | Tensor:
    return float(value) if value.ndim == 0 else value


def rescaled(x0: Tensor, plain: Tensor, share: float = 0.7) -> Tensor:
    """A guided estimate of x0 whose standard deviation is moved by `share` of the way to that of the plain estimate.

    Guidance raises the contrast; this lowers it again. Standard deviations are per sample. Lin et al. 2023 (arXiv 2305.08891),
    eq. 14 to 16, applied to x0 instead of to the network's prediction.
    """
    ratio = plain.flatten(1).std(1) / x0.flatten(1).std(1)
    return x0 * expand_like(1 + share * (ratio - 1), x0)


def threshold(denoiser: Denoiser, limit: float = 1.0) -> Denoiser:
    """Static thresholding: the estimate clamped to +-limit. Saharia et al. 2022 (arXiv 2205.11487), section 2.3."""
    return lambda x, level, cond: denoiser(x, level, cond).clamp(-limit, limit)


def within(denoiser: Denoiser, low: Tensor, high: Tensor) -> Denoiser:
    """Clamp x0_hat to the range low ... high, such as the data's. The bounds are broadcast to one example.

    Ho et al. 2020 (arXiv 2006.11239) do so with pixels in -1 ... 1.
    """
    return lambda x, level, cond: denoiser(x, level, cond).clamp(low.to(x), high.to(x))


def dynamic_threshold(denoiser: Denoiser, quantile: float = 0.995, limit: float = 1.0) -> Denoiser:
    """Dynamic thresholding: clamp each estimate to +-q and scale it by limit / q, where q = max(limit, its |x0| quantile).

    Saharia et al. 2022 (arXiv 2205.11487), section 2.3.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        x0 = denoiser(x, level, cond)
        q = expand_like(x0.abs().flatten(1).quantile(quantile, 1).clamp(min=limit), x)
        return x0.clamp(-q, q) * (limit / q)

    return denoise


def classifier_guidance(
    denoiser: Denoiser, log_p: Callable[[Tensor, Level], Tensor], strength: Strength = 1.0, rescale: float = 0.0
) -> Denoiser:
    """Classifier guidance: x0 + w (s^2 / a) grad_x log p(y | x), with log_p `[B]` of a noise-aware classifier.

    By Tweedie's formula w = 1 gives the exact conditional denoiser if the classifier is exact. Dhariwal & Nichol 2021 (arXiv
    2105.05233), algorithm 2. Undefined at a = 0.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        w = strength_at(strength, level)
        if not isinstance(w, Tensor) and w == 0:
            return denoiser(x, level, cond)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_p(leaf, level).sum(), leaf)
        plain = denoiser(x, level, cond)
        x0 = plain + expand_like(w * level.s**2 / level.a, x) * gradient
        return rescaled(x0, plain, rescale) if rescale else x0

    return denoise


def self_condition(denoiser: Denoiser, key: str) -> Denoiser:
    """Self-conditioning: evaluate the denoiser twice, the second time with its first estimate as condition `key`.

    The condition is flattened if the key starts with `vec:`. Chen et al. 2022 (arXiv 2208.04202) reuse the estimate of the
    previous step instead; two evaluations need no state and work with every solver, at twice the cost.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        first = denoiser(x, level, without(cond, key)).detach()
        estimate = first.flatten(1) if key.startswith("vec:") else first
        return denoiser(x, level, {**cond, key: estimate})

    return denoise
