"""Every method for inverse problems on the Gaussian problem with known posterior: nearer to it than the prior, by how much."""

import pytest
import torch

from benchmarks import inverse as problem
from diffusion_core import rng
from diffusion_core.extras import closed_form

# Distance of the samples' mean from the posterior's, in its standard deviations, that each may have where values are known
# (the prior's is 3; the ranking is `benchmarks.inverse`'s).
LARGEST = {
    "replacement / POCS / ILVR": 1.1,
    "RePaint, 10 times": 0.25,
    "CCDF": 1.2,
    "DPS": 1.6,
    "MCG": 0.7,
    "PiGDM": 0.55,
    "isotropic posterior": 1.1,
    "moment matching": 0.2,
}


@pytest.mark.parametrize("name", LARGEST)
def test_method_is_as_near_to_the_posterior_as_it_should_be(name, monkeypatch):
    monkeypatch.setattr(problem, "COUNT", 400)
    mean, cov = problem.prior()
    a = problem.problems()["inpainting"]
    truth = mean + rng.normal((problem.D,), 7, torch.arange(1)).double()[0] @ torch.linalg.cholesky(cov).T
    y = truth @ a.T + problem.NOISE * rng.normal((len(a),), 8, torch.arange(1)).double()[0]
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + problem.NOISE**2 * torch.eye(len(a), dtype=torch.float64))
    posterior_mean, posterior_cov = mean + gain @ (y - a @ mean), cov - gain @ a @ cov
    samples = problem.METHODS[name](closed_form.gaussian(mean, cov), a, y.expand(400, -1))
    off = float((samples.mean(0) - posterior_mean).norm() / posterior_cov.trace().sqrt())
    assert off < LARGEST[name]
    if name not in ("DPS", "moment matching", "PiGDM", "isotropic posterior"):  # these meet a noisy measurement exactly
        assert float((samples @ a.T - y).abs().max()) < 0.05
    assert float((samples @ a.T - y).norm(dim=1).mean()) < 1.0  # the prior's is 2.5
