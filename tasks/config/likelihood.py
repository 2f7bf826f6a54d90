"""The section `likelihood`: bits per dimension of held-out data."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.config.section import Positive, Section, Seed


class Likelihood(Section):
    """How well a model predicts held-out data: an upper bound on -log2 p a dimension, or the exact value of its ODE."""

    models: list[Literal["poses", "pictures"]] = Field(default=[])
    # elbo: the variational bound. ode: the exact likelihood of the probability flow, with a backward pass a dimension.
    estimator: Literal["elbo", "ode"] = "elbo"
    # What gives 8-bit pixels their probability at the least noise; poses and latents have a density instead.
    decoder: Literal["discrete", "logistic", "mixture"] = "discrete"
    draws: Positive = 16  # noise levels of each example; of elbo
    count: int = Field(default=256, ge=2)  # examples of the training and of the held-out data each
    sigma_min: float = Field(default=0.01, gt=0, lt=1)  # the least noise, where data have standard deviation 0.5
    seed: Seed = 0

    @model_validator(mode="after")
    def _ode_is_of_poses(self) -> Likelihood:
        if self.estimator == "ode" and "pictures" in self.models:
            raise ValueError("models may only have poses with estimator ode: pictures have too many dimensions")
        return self
