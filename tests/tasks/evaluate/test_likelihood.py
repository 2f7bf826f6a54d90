"""Bits per dimension are those of the law of the data, in the units of the data, within their standard error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffusion_core.codecs import Affine
from diffusion_core.conditioning import Cond
from diffusion_core.extras import closed_form
from diffusion_core.schedules import Level
from tasks.common.files import read_json
from tasks.config.likelihood import Likelihood
from tasks.config.params import load
from tasks.evaluate import likelihood, membership_inference
from tasks.models.inputs import Examples
from tests.support.evaluation_workspace import make
from tests.support.workspaces import write_params, write_untrained

MEAN, SCALE = 3.0, 7.0


def drawn(count: int, seed: int, d: int = 5) -> Examples:
    """Normal data of mean 3 and standard deviation 3.5, which the codec below makes 0 and 0.5."""
    x0 = MEAN + 0.5 * SCALE * torch.randn(count, d, generator=torch.Generator().manual_seed(seed))
    return Examples(x0, {})


def exact(x: Tensor, level: Level, cond: Cond) -> Tensor:
    """The denoiser of normal data of mean 0 and standard deviation 0.5."""
    a, s = level.like(x)
    return 0.25 * a / (0.25 * a**2 + s**2) * x


@pytest.mark.parametrize("estimator", ["elbo", "ode"])
def test_bits_of_normal_data_are_those_of_their_density(estimator: str) -> None:
    codec = Affine(torch.tensor(MEAN), torch.tensor(SCALE))
    examples = drawn(400, 1)
    settings = Likelihood.model_validate({"estimator": estimator, "draws": 16})
    value, error = likelihood.bits(exact, codec, drawn(100, 2), examples, settings, discrete=False)
    sd = 0.5 * SCALE
    log_p = -((examples.x0.double() - MEAN) ** 2) / (2 * sd**2) - math.log(sd * math.sqrt(2 * math.pi))
    truth = -log_p.mean(1) / math.log(2)
    # The standard error is that of the choice of examples and of the estimate.
    assert float(truth.std()) / 20 <= 1.05 * error < 0.06
    assert value == pytest.approx(float(truth.mean()), abs=2 * error)


def test_the_least_noise_is_in_the_networks_units() -> None:
    """Data that are all the same have the density of the noise: normal, of sigma_min times the scale of the codec."""
    codec = Affine(torch.tensor(MEAN), torch.tensor(SCALE))
    same = Examples(torch.full((8, 5), MEAN), {})
    value, _ = likelihood.bits(
        lambda x, level, cond: torch.zeros_like(x), codec, same, same, Likelihood(sigma_min=0.05), discrete=False
    )
    assert value == pytest.approx(math.log2(0.05 * SCALE * math.sqrt(2 * math.pi * math.e)), abs=0.01)


@pytest.mark.parametrize("decoder", ["discrete", "logistic", "mixture"])
def test_bits_of_pixels_are_their_entropy(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that are black or white with probability 1/2: one bit, in units in which they are not -1 and 1."""
    monkeypatch.setattr(likelihood, "FITTED", 40)
    white = torch.randint(0, 2, (64, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    examples = Examples(white * 2.0 - 1, {})
    codec = Affine(torch.tensor(0.2), torch.tensor(2.0))
    ends = (torch.tensor([[-1.0], [1.0]], dtype=torch.float64) - 0.2) / 2
    mixture = closed_form.mixture(torch.tensor([0.5, 0.5], dtype=torch.float64), ends, 0.0)

    def denoise(x: Tensor, level: Level, cond: Cond) -> Tensor:
        each = Level(*(value.expand(len(x)).repeat_interleave(12) if value.ndim else value for value in level))
        return mixture(x.reshape(-1, 1), each, {}).reshape(x.shape)

    # A fixed law of the width of the noise spreads over several values, unless the noise is small; a fitted one does not.
    sigma_min = 0.01 if decoder == "mixture" else 0.001
    settings = Likelihood.model_validate({"decoder": decoder, "draws": 16, "sigma_min": sigma_min})
    value, error = likelihood.bits(denoise, codec, examples, examples, settings, discrete=True)
    assert error < 0.04 and value == pytest.approx(1.0, abs=2.5 * error)


def test_the_stage_measures_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "PILOT", 4)
    make(tmp_path, 40, 12, 8, 1, 1)
    asked = {"models": ["poses", "pictures"], "draws": 2, "count": 16}
    params = load(write_params(tmp_path, likelihood=asked))
    for name in ("poses", "pictures"):
        write_untrained(tmp_path, params, name)
    membership_inference.run(params, tmp_path)
    found = read_json(tmp_path / "reports/membership_inference/membership_inference.json")["likelihood"]
    assert found["absent"] == {} and set(found["sentences"]) == {"poses", "pictures"}
    for name in ("poses", "pictures"):
        for end in ("", "_error", "_train", "_error_train"):
            assert math.isfinite(found["metrics"][f"{name}.bits_per_dim{end}"])
    assert 5 < found["metrics"]["pictures.bits_per_dim"] < 9  # 8 without any model

    off = load(write_params(tmp_path))
    assert likelihood.run(off, tmp_path) == {"metrics": {}, "sentences": {}, "absent": {}}


def test_a_model_without_normal_noise_says_why(tmp_path: Path) -> None:
    make(tmp_path, 40, 12, 8, 1, 1)
    params = load(
        write_params(tmp_path, likelihood={"models": ["poses"]}, poses__recipe="vae", sample__poses__sampler="own")
    )
    write_untrained(tmp_path, params, "poses")
    found = likelihood.run(params, tmp_path)
    assert found["metrics"] == {} and "vae" in found["absent"]["poses"]


def test_the_ode_is_refused_for_pictures() -> None:
    with pytest.raises(ValidationError):
        Likelihood(models=["pictures"], estimator="ode")
