"""A recipe: everything that distinguishes one diffusion method from another, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from diffusion_core import denoiser, losses, rng
from diffusion_core.denoiser import Preconditioned
from diffusion_core.importance_sampling import Importance
from diffusion_core.sampling.loop import Step
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.schedules import Level
from diffusion_core.targets import Target


@dataclass(frozen=True)
class Recipe:
    """How to train and how to sample. All parts are plain functions; an nn.Module among density, weight and loss is trained."""

    target: Target  # what the net predicts
    density: losses.Density  # which levels are trained
    weight: losses.Weight  # what an error costs there
    timesteps: Callable[[int], Timesteps]  # number of steps -> levels visited in sampling
    step: Step  # how sampling goes from one to the next
    sd: float = 1.0  # standard deviation of the data, for scaling the net's input
    c_noise: Callable[[Level], Tensor] = denoiser.log_sigma  # how the net is told the level
    form: Callable[..., Preconditioned] = Preconditioned  # (net, target, sd, c_noise) -> denoiser
    draw: losses.Draw = losses.stratified
    loss: Callable[..., Tensor] = losses.loss
    noise: rng.Noise = rng.normal  # what corrupts, mean 0 and variance 1
    importance: Importance | None = None  # levels drawn in proportion to the size of their loss

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with some parts changed."""
        return replace(self, **changes)

    def denoiser(self, net: nn.Module) -> Preconditioned:
        """The net as this recipe's denoiser."""
        return self.form(net, self.target, self.sd, self.c_noise)
