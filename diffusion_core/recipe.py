"""A recipe: everything that distinguishes one diffusion method from another, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from diffusion_core import denoiser, objective, rng
from diffusion_core.denoiser import Preconditioned
from diffusion_core.importance import Importance
from diffusion_core.level import Level
from diffusion_core.sample import Step
from diffusion_core.target import Target
from diffusion_core.walk import Walk


@dataclass(frozen=True)
class Recipe:
    """How to train and how to sample. All parts are plain functions; an nn.Module among density, weight and loss is trained."""

    target: Target  # what the net predicts
    density: objective.Density  # which levels are trained
    weight: objective.Weight  # what an error costs there
    walk: Callable[[int], Walk]  # number of steps -> levels visited in sampling
    step: Step  # how sampling goes from one to the next
    sd: float = 1.0  # standard deviation of the data, for scaling the net's input
    c_noise: Callable[[Level], Tensor] = denoiser.log_sigma  # how the net is told the level
    form: Callable[..., Preconditioned] = Preconditioned  # (net, target, sd, c_noise) -> denoiser
    draw: objective.Draw = objective.stratified
    loss: Callable[..., Tensor] = objective.loss
    noise: rng.Noise = rng.normal  # what corrupts, mean 0 and variance 1
    importance: Importance | None = None  # levels drawn in proportion to the size of their loss

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with some parts changed."""
        return replace(self, **changes)

    def denoiser(self, net: nn.Module) -> Preconditioned:
        """The net as this recipe's denoiser."""
        return self.form(net, self.target, self.sd, self.c_noise)
