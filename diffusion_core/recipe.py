"""A recipe: all choices that distinguish one diffusion method from another, in one dataclass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from diffusion_core import denoiser, losses, rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Preconditioned
from diffusion_core.extras.corruptions import Degrade, process_time
from diffusion_core.extras.learned_variance import LearnedVariance
from diffusion_core.importance_sampling import Importance
from diffusion_core.sampling.loop import Step
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.schedules import Level
from diffusion_core.targets import Target

# Builds one network: (map conditions that have as many channels as x, multiple of these channels that it returns).
Build = Callable[[Sequence[str], int], nn.Module]
# What an example `[B, *S]` costs at a level: (denoiser of the recipe's form, x0, level, noise, cond) -> [B].
Error = Callable[[Any, Tensor, Level, Tensor, Cond], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How to train and how to sample. Fields are plain functions; a density, weight or loss that is an nn.Module is trained."""

    target: Target  # what the network predicts
    density: losses.Density  # which levels are trained
    weight: losses.Weight  # of the squared error of x0 at each level
    timesteps: Callable[[int], Timesteps]  # number of steps -> levels visited when sampling
    step: Step  # the solver, which goes from one level to the next
    sd: float = 1.0  # standard deviation of the data, for scaling the network's input
    c_noise: Callable[[Level], Tensor] = denoiser.log_sigma  # noise embedding: level -> number that the network sees
    form: Callable[..., Preconditioned] = Preconditioned  # (net, target, sd, c_noise) -> denoiser
    draw: losses.Draw = losses.stratified  # how the uniform numbers behind the levels are drawn
    loss: Callable[..., Tensor] = losses.loss
    noise: rng.Noise = rng.normal  # distribution of the noise, mean 0 and variance 1
    importance: Importance | None = None  # draw levels in proportion to their loss
    degrade: Degrade | None = None  # a corruption in place of added noise
    codes: int | None = None  # examples are tokens below this number, see `extras.tokens`
    initial: Callable[[Tensor], Tensor] | None = (
        None  # noise -> x where sampling starts; None: s noise, or masked tokens
    )
    error: Error | None = None  # what is measured at a level; None: the squared error of x0
    nets: Callable[[Build], nn.Module] | None = None  # several networks as one module; None: one network
    fresh: bool = False  # sampling gives the denoiser new noise in each step, as condition LATENT
    # (denoiser, noise [B, *S], conditions) -> the conditions of a sample, drawn before its first step.
    prepare: Callable[[Any, Tensor, Cond], Cond] | None = None
    finish: Callable[[Any, Tensor, Cond], Tensor] | None = None  # what becomes of a sample after its last step

    def replace(self, **changes: Any) -> Recipe:
        """A copy of this recipe with some fields changed."""
        return replace(self, **changes)

    def corrupt(self, x0: Tensor, level: Level, noise: Tensor) -> Tensor:
        """The example x0 `[B, *S]` at this level, as in training."""
        if self.degrade is not None:
            return self.degrade(x0, process_time(level).to(x0))
        return level.corrupt(x0, noise)

    def network(self, build: Build) -> nn.Module:
        """The network that `denoiser` wraps, or all networks of a model that has several."""
        if self.nets is not None:
            return self.nets(build)
        return build((), 2 if self.form is LearnedVariance else 1)

    def drawing(self, denoiser: Preconditioned | None) -> dict[str, Any]:
        """What `sampling.loop.generate` must know of the recipe, as its keywords. `denoiser`: without guidance."""
        return {
            "noise": self.noise, "codes": self.codes, "initial": self.initial, "fresh": self.fresh,
            "prepare": None if self.prepare is None else partial(self.prepare, denoiser),
            "finish": None if self.finish is None else partial(self.finish, denoiser),
        }  # fmt: skip

    def denoiser(self, net: nn.Module) -> Preconditioned:
        """The network wrapped as this recipe's denoiser."""
        return self.form(net, self.target, self.sd, self.c_noise)
