"""Partial poses: the joints that are not given follow their conditional distribution."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import choices, generate, presets
from diffusion_core.codecs import Affine
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.extras import closed_form
from diffusion_core.sampling.solvers import unipc
from diffusion_core.schedules import Level
from diffusion_core.training_choices import Training
from tasks.config.sampling import SamplingChoices
from tasks.models.modality import Model
from tasks.models.sampler import draw

D, SD = 99, 0.5


class GaussianDenoiser(nn.Module):
    """The exact denoiser of normal poses."""

    def __init__(self, cov: Tensor) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.oracle = closed_form.gaussian(torch.zeros(D, dtype=torch.float64), cov)

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        return self.oracle(x.flatten(1), level, {}).view_as(x)


class Poses:
    """What `draw` uses of a model."""

    name = "poses"
    config = SimpleNamespace(recipe="edm", self_condition=False)
    shape = (33, 3)
    codec = Affine(torch.zeros(33, 3), torch.ones(()))
    recipe = presets.edm(SD).replace(step=unipc())

    def __init__(self, cov: Tensor) -> None:
        self.denoiser = GaussianDenoiser(cov)

    def as_sampled(self, denoiser: Denoiser) -> Denoiser:
        return denoiser

    def drawing(self, denoiser: Any) -> dict[str, Any]:
        return self.recipe.drawing(denoiser)

    def sampler(self, sampling: choices.Sampling, known: choices.Known) -> choices.Made:
        return sampling.make(Training("edm"), self.recipe, known)

    def autocast(self) -> AbstractContextManager[None]:
        return nullcontext()


def correlated() -> Tensor:
    """The covariance of coordinates whose correlation falls with the distance of their indices."""
    index = torch.arange(D, dtype=torch.float64)
    return SD**2 * (torch.exp(-((index[:, None] - index).abs()) / 6) + 0.01 * torch.eye(D, dtype=torch.float64))


def test_joints_that_are_not_given_have_the_conditional_mean_and_variance() -> None:
    cov = correlated()
    joints = torch.full((33, 3), torch.nan)
    joints[10], joints[20] = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([-0.6, -0.7, -0.8])
    mask = joints.isfinite().flatten()
    gain = cov[~mask][:, mask] @ torch.linalg.inv(cov[mask][:, mask])
    mean = gain @ joints.flatten()[mask].double()
    variance = (cov[~mask][:, ~mask] - gain @ cov[mask][:, ~mask]).diagonal()
    samples = (
        draw(cast(Model, Poses(cov)), {}, SamplingChoices(steps=20), 0, torch.arange(400), joints=joints)
        .flatten(1)
        .double()
    )
    assert torch.equal(samples[:, mask], joints.flatten()[mask].double().expand(400, -1))
    free = samples[:, ~mask]
    assert float((free.mean(0) - mean).norm() / mean.norm()) < 0.2  # 0.69 without guidance
    assert 0.7 < float(free.var(0).sum() / variance.sum()) < 1.3


def test_given_joints_are_restored_after_every_step_and_not_only_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network takes each step from the given joints with the noise of that step, so that the other joints fit them."""
    drawn = []

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(generate(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr("tasks.models.sampler.generate", recorded)
    joints = torch.full((33, 3), torch.nan)
    joints[10] = torch.tensor([0.9, 0.8, 0.7])
    draw(cast(Model, Poses(correlated())), {}, SamplingChoices(steps=4), 0, torch.arange(3), joints=joints)
    torch.testing.assert_close(drawn[0][:, 10].double(), joints[10].double().expand(3, -1), rtol=0, atol=1e-6)
