"""Agreement with other libraries, installed ones and results stored by `benchmarks.golden`."""

import pytest

pytest.importorskip("azula")
pytest.importorskip("diffusers")

from benchmarks import oracles, parity
from diffusion_core.sampling.loop import sample


@pytest.mark.parametrize("runs", [oracles.azula_runs, oracles._sigmas, oracles._flows])
def test_trajectories_of_other_libraries_are_reproduced(runs):
    for run in runs():
        ours = sample(oracles.model(), run.start, run.timesteps, run.step, iter(run.noise))
        assert float((ours - run.end).abs().max()) <= run.tolerance, run.name


@pytest.mark.slow
def test_discrete_chains_are_reproduced():
    for run in oracles._chains():
        ours = sample(oracles.model(), run.start, run.timesteps, run.step, iter(run.noise))
        assert float((ours - run.end).abs().max()) <= run.tolerance, run.name


def test_noising_velocity_and_snr_agree_with_diffusers():
    for name, (difference, tolerance) in parity.tables().items():
        assert difference <= tolerance, name


def test_stored_results_are_reproduced():
    """Trajectories of k-diffusion and smalldiffusion, torchcfm flows, losses of k-diffusion and lucidrains."""
    found = parity.golden()
    assert len(found) == 25
    for name, (difference, tolerance) in found.items():
        assert difference <= tolerance, name


def test_averages_agree_with_ema_pytorch():
    for name, (difference, tolerance) in parity.averages().items():
        assert difference <= tolerance, name
