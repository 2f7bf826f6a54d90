"""Guides: denoisers in, denoiser out, composed as plain functions. All work on the clean estimate.

A strength is a number or a function of the level, so that "only in an interval" and "more towards the end" need no guide of
their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond, without
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level, expand_like

Strength = float | Callable[[Level], float]


def extrapolate(good: Denoiser, bad: Denoiser, strength: Strength) -> Denoiser:
    """bad + w (good - bad): strength 1 is `good`, more goes beyond it.

    Autoguidance (Karras et al. 2024, arXiv 2406.02507) when `bad` is a smaller or earlier model. Where w is 1, `bad` is not
    evaluated.
    """

    def guided(x: Tensor, level: Level, cond: Cond) -> Tensor:
        w = strength(level) if callable(strength) else strength
        if w == 1:
            return good(x, level, cond)
        low = bad(x, level, cond)
        return low + w * (good(x, level, cond) - low)

    return guided


def unconditional(denoiser: Denoiser, *names: str) -> Denoiser:
    """The denoiser with the named conditions withheld (without names, all of them)."""
    return lambda x, level, cond: denoiser(x, level, without(cond, *names))


def cfg(denoiser: Denoiser, strength: Strength, *names: str) -> Denoiser:
    """Classifier-free guidance; strength 1 is none. Ho & Salimans 2022 (arXiv 2207.12598).

    In x0 it is the same extrapolation as in eps, v or velocity. With names it is away from having all but the named conditions;
    applied once for each of several conditions it gives each a strength of its own (Brooks et al. 2023, arXiv 2211.09800).
    """
    return extrapolate(denoiser, unconditional(denoiser, *names), strength)


def negative(denoiser: Denoiser, unwanted: Cond, strength: Strength) -> Denoiser:
    """Away from another condition instead of from none: the negative prompt. Liu et al. 2022 (arXiv 2206.01714), "NOT"."""
    return extrapolate(denoiser, lambda x, level, cond: denoiser(x, level, {**cond, **unwanted}), strength)


def interval(strength: float, low: float, high: float) -> Strength:
    """The strength where low < sigma <= high, 1 elsewhere. Kynkaanniemi et al. 2024 (arXiv 2404.07724)."""
    return lambda level: strength if low < float(level.sigma) <= high else 1.0


def ramp(first: float, last: float) -> Strength:
    """Linear in the angle from `first` at pure noise to `last` at clean: Muse's growing scale (arXiv 2301.00704), on levels."""
    return lambda level: last + (first - last) * float(level.angle) / (math.pi / 2)


def oscillate(levels: list[Level], high: float, low: float, start: int) -> Strength:
    """`high` for the first `start` of the walk's levels, then low, high, low, ... Ho et al. 2022 (arXiv 2210.02303), 3.2."""
    place = {float(level.sigma): i for i, level in enumerate(levels)}

    def strength(level: Level) -> float:
        i = place[float(level.sigma)]
        return high if i < start or (i - start) % 2 else low

    return strength


def rescale(guided: Denoiser, plain: Denoiser, share: float = 0.7) -> Denoiser:
    """The guided estimate with, by `share`, the standard deviation of the plain one, each sample's own.

    Lin et al. 2023 (arXiv 2305.08891), eq. 14 to 16, on x0 instead of the prediction.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        strong = guided(x, level, cond)
        ratio = plain(x, level, cond).flatten(1).std(1) / strong.flatten(1).std(1)
        return strong * expand_like(1 + share * (ratio - 1), x)

    return denoise


def threshold(denoiser: Denoiser, limit: float = 1.0) -> Denoiser:
    """The estimate clamped to +-limit: static thresholding."""
    return lambda x, level, cond: denoiser(x, level, cond).clamp(-limit, limit)


def dynamic_threshold(denoiser: Denoiser, quantile: float = 0.995, limit: float = 1.0) -> Denoiser:
    """The estimate clamped to its own quantile of magnitude and scaled back to +-limit, where that exceeds the limit.

    Saharia et al. 2022 (arXiv 2205.11487), section 2.3.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        x0 = denoiser(x, level, cond)
        size = expand_like(x0.abs().flatten(1).quantile(quantile, 1).clamp(min=limit), x)
        return x0.clamp(-size, size) * (limit / size)

    return denoise


def classifier_guidance(
    denoiser: Denoiser, log_p: Callable[[Tensor, Level], Tensor], strength: Strength = 1.0
) -> Denoiser:
    """x0 + w (s^2 / a) grad log p(y | x): classifier guidance, log_p `[B]` from a noise-aware classifier.

    By Tweedie's formula with w = 1 it is the exact conditional denoiser if the classifier is exact. Dhariwal & Nichol 2021
    (arXiv 2105.05233), algorithm 2. Undefined at a = 0.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        w = strength(level) if callable(strength) else strength
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_p(leaf, level).sum(), leaf)
        return denoiser(x, level, cond) + expand_like(w * level.s**2 / level.a, x) * slope

    return denoise


def self_condition(denoiser: Denoiser, key: str) -> Denoiser:
    """The denoiser asked twice, the second time with its own first estimate as condition `key` (as vector or as map).

    Chen et al. 2022 (arXiv 2208.04202) reuse the estimate of the previous step instead; asking twice needs no hidden state and
    works with every solver, at twice the evaluations.
    """

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        first = denoiser(x, level, without(cond, key)).detach()
        shown = first.flatten(1) if key.startswith("vec:") else first
        return denoiser(x, level, {**cond, key: shown})

    return denoise
