"""Guides: denoisers in, denoiser out, composed as plain functions. All work on the clean estimate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_core.cond import Cond, without
from diffusion_core.denoiser import Denoiser
from diffusion_core.level import Level, spread

Strength = float | Callable[[Level], Tensor | float]


def extrapolate(good: Denoiser, bad: Denoiser, strength: Strength) -> Denoiser:
    """bad + w (good - bad): strength 1 is `good`, more goes beyond it.

    Autoguidance (Karras et al. 2024, arXiv 2406.02507) when `bad` is a smaller or earlier model.
    """

    def guided(x: Tensor, level: Level, cond: Cond) -> Tensor:
        w = strength(level) if callable(strength) else strength
        if not isinstance(w, Tensor) and w == 1:
            return good(x, level, cond)
        low = bad(x, level, cond)
        return low + spread(torch.as_tensor(w), x) * (good(x, level, cond) - low)

    return guided


def unconditional(denoiser: Denoiser, *names: str) -> Denoiser:
    """The denoiser with the named conditions withheld (without names, all of them)."""
    return lambda x, level, cond: denoiser(x, level, without(cond, *names))


def cfg(denoiser: Denoiser, strength: Strength) -> Denoiser:
    """Classifier-free guidance; strength 1 is none. Ho & Salimans 2022 (arXiv 2207.12598).

    In x0 it is the same extrapolation as in eps, v or velocity.
    """
    return extrapolate(denoiser, unconditional(denoiser), strength)
