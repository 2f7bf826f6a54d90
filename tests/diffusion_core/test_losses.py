"""Loss weights, densities of levels, draws and importance sampling, each against its formula."""

import math

import pytest
import torch

from diffusion_core import loss_weights, presets, rng, schedules
from diffusion_core import losses as objective
from diffusion_core.importance_sampling import Importance
from diffusion_core.nets.mlp import MLP
from diffusion_core.schedules import sigma_level
from diffusion_core.targets import EPS
from diffusion_core.training import parallel
from diffusion_core.training.compute import Compute
from diffusion_core.training.trainer import TrainConfig, Trainer

SIGMA = sigma_level(torch.logspace(-2, 1.5, 40, dtype=torch.float64))


def test_weights_in_closed_form():
    snr = SIGMA.snr
    close = torch.testing.assert_close
    close(loss_weights.min_snr(5)(SIGMA), torch.minimum(snr, torch.full_like(snr, 5)))
    close(loss_weights.soft_min_snr(1.0)(SIGMA), snr / (1 + snr))
    # P2 is 1 / (k + SNR)^gamma on the error of the noise.
    close(loss_weights.p2(2.0, 0.5)(SIGMA), objective.unit(EPS)(SIGMA) / (2 + snr).sqrt())
    close(loss_weights.p2(0.5, 2.0)(SIGMA), objective.unit(EPS)(SIGMA) / (0.5 + snr) ** 2)
    close(loss_weights.debiased()(SIGMA), objective.unit(EPS)(SIGMA) / snr.sqrt())


@pytest.mark.parametrize("schedule", [schedules.vp(), schedules.trig(), schedules.linear(), schedules.logsnr(8, -6)])
def test_elbo_weight_is_the_slope_of_the_snr(schedule):
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    h = 1e-5
    slope = (schedule(t + h).snr - schedule(t - h).snr) / (2 * h)
    torch.testing.assert_close(loss_weights.elbo(schedule)(schedule(t)), -slope / 2, rtol=1e-5, atol=1e-9)


def test_stratified_draws_are_uniform_and_reduce_the_deviation_fivefold():
    """The standard deviation of a batch's mean loss, for a smooth loss of the level."""

    def noise(draw):
        means = torch.stack([torch.sin(3 * draw(0, start, 64)).mean() for start in range(0, 64 * 400, 64)])
        return float(means.std())

    assert noise(objective.iid) / noise(objective.stratified) > 5
    u = torch.cat([objective.stratified(1, start, 16) for start in range(0, 16 * 500, 16)])
    assert abs(float(u.mean()) - 0.5) < 0.002 and 0 < float(u.min()) < float(u.max()) < 1


@pytest.mark.parametrize("world, microbatch", [(1, None), (1, 3), (2, None), (4, 3)])
def test_draws_are_stratified_over_ranks_and_micro_batches(monkeypatch, world, microbatch):
    """Each of the batch's equal quantiles has one level, and an image's level does not depend on how the batch is divided."""
    recipe = presets.edm(0.5)
    config = TrainConfig(images=96, batch=24)
    seen = []
    for rank in range(world):
        monkeypatch.setattr(parallel, "ranks", lambda rank=rank: (rank, world))
        # There is no process group, and gradients are not looked at.
        monkeypatch.setattr(parallel, "parallelise", lambda module, *_: module)
        trainer = Trainer(
            recipe.denoiser(MLP(2, width=8, depth=1)), recipe, config, lambda i: (torch.zeros(len(i), 2), {}), 100,
            compute=Compute(microbatch=microbatch),
        )  # fmt: skip
        seen.append(trainer.gradient(48, 24).s)
    u = torch.special.ndtr((torch.cat(seen).log() + 1.2) / 1.2)  # EDM's log sigma is normal (-1.2, 1.2)
    assert sorted((u * 24).long().tolist()) == list(range(24))
    torch.testing.assert_close(u, objective.stratified(rng.fold(0, 1), 48, 24), rtol=0, atol=1e-9)


def test_densities_have_their_distribution():
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    logs = objective.lognormal(-1.2, 1.2)(u).sigma.log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-3) and float(logs.std()) == pytest.approx(1.2, abs=1e-2)
    t = schedules.linear().invert(objective.logitnormal(schedules.linear(), 0.5, 2.0)(u).logsnr)
    assert float(torch.logit(t).mean()) == pytest.approx(0.5, abs=1e-3)
    chain = schedules.betas(schedules.linear_betas(10))
    steps = chain.invert(objective.discrete(chain, 10)(u).logsnr)
    assert torch.bincount(steps.round().long()).tolist() == [10_000] * 10


def test_importance_sampling_is_unbiased_and_reduces_variance():
    """For a loss that is large at small u, the mean is unchanged and the standard deviation falls."""

    def losses(u):
        return torch.exp(-6 * u) * 5

    importance = Importance(bins=16)
    for round_ in range(200):
        u, _ = importance(rng.uniform((), 1, torch.arange(64) + 64 * round_))
        importance.update(importance.squares(u, losses(u)))
    u = rng.uniform((), 2, torch.arange(200_000))
    warped, scale = importance(u)
    ours, plain = losses(warped) * scale, losses(u)
    expected = 5 * (1 - math.exp(-6)) / 6
    assert float(ours.mean()) == pytest.approx(expected, abs=5 * float(ours.std()) / len(u) ** 0.5)
    assert float(ours.std()) < 0.4 * float(plain.std())
    assert float(scale.mean()) == pytest.approx(1, abs=0.01)
    assert (warped.sort().indices == u.sort().indices).all()  # monotone


def test_importance_is_uniform_until_every_bin_was_drawn():
    importance = Importance(bins=4)
    u = torch.tensor([0.1, 0.3, 0.6], dtype=torch.float64)
    importance.update(importance.squares(u, torch.ones(3)))
    torch.testing.assert_close(importance(u), (u, torch.ones(3, dtype=torch.float64)))


def test_uncertainty_learns_the_loss():
    loss = loss_weights.Uncertainty(width=64)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    expected = SIGMA.sigma / (1 + SIGMA.sigma)  # the error of a made-up denoiser
    x0 = torch.zeros(40, 1, dtype=torch.float64)
    for _ in range(400):
        value = loss(lambda x, here, cond: expected.sqrt()[:, None], x0, SIGMA, x0, lambda here: torch.ones(40), {})
        optimizer.zero_grad()
        value.mean().backward()
        optimizer.step()
    torch.testing.assert_close(loss.log_variance(SIGMA).double(), expected.log(), rtol=0, atol=0.1)


def test_self_conditioning_gives_half_of_the_rows_their_estimate():
    x0, noise = torch.randn(2, 4000, 2, generator=torch.Generator().manual_seed(0))
    here = sigma_level(torch.ones(4000))
    shown = []

    def denoise(x, at, cond):
        shown.append(cond)
        return x / 2

    value = objective.SelfConditioned("vec:self")(denoise, x0, here, noise, lambda at: torch.ones(4000), {})
    assert shown[0] == {} and torch.equal(shown[1]["vec:self"], (x0 + noise) / 2)
    assert abs(float(shown[1]["keep:vec:self"].float().mean()) - 0.5) < 0.04
    torch.testing.assert_close(value, ((x0 + noise) / 2 - x0).square().mean(1))


@pytest.mark.parametrize("penalty", [objective.absolute, objective.pseudo_huber])
def test_a_penalty_with_unit_weight_is_that_of_the_prediction(penalty):
    """Also with weights of the coordinates; the penalised square is the plain loss."""
    recipe = presets.ddpm(0.5)
    net = MLP(2, 16, 1)
    denoiser = recipe.denoiser(net)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    x0, noise = (torch.randn(12, 2, generator=generator) for _ in range(2))
    level = recipe.density(torch.linspace(0.05, 0.95, 12, dtype=torch.float64))
    cond = {"weight:x": torch.tensor([0.5, 1.5]).expand(12, 2)}
    error = denoiser.predict(level.corrupt(x0, noise), level) - noise
    expected = (penalty(error) * cond["weight:x"]).mean(1)
    got = objective.Penalised(penalty)(denoiser, x0, level, noise, recipe.weight, cond)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    plain = objective.Penalised(torch.square)(denoiser, x0, level, noise, recipe.weight, cond)
    torch.testing.assert_close(plain, objective.loss(denoiser, x0, level, noise, recipe.weight, cond))


def test_pseudo_huber_is_square_for_small_errors_and_linear_for_large_ones():
    small, large = torch.tensor([1e-4, -1e-4]).double(), torch.tensor([1e3, -1e3]).double()
    torch.testing.assert_close(objective.pseudo_huber(small, 0.1), small**2, rtol=1e-5, atol=0)
    torch.testing.assert_close(objective.pseudo_huber(large, 0.1), 0.2 * large.abs(), rtol=1e-3, atol=0)


def test_the_shift_of_sd3_is_that_of_its_equation_23():
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    u = torch.special.ndtr(torch.logit(t))
    trained = presets.sd3(0.5, shift=3.0).density(u)
    expected = 3 * t / (1 + 2 * t)
    torch.testing.assert_close(trained.s / (trained.a + trained.s), expected)


def test_a_further_term_is_added_with_the_weight_of_the_level():
    x0, noise, level = torch.ones(3, 2), torch.zeros(3, 2), sigma_level(torch.tensor([0.5, 1.0, 2.0]))

    def half(x, level, cond):
        return 0.5 * x

    def weight(level):
        return level.s

    def term(estimate, x0, cond):
        return 7 * (x0 - estimate).sum(1)

    plain = objective.loss(half, x0, level, noise, weight, {})
    both = objective.WithTerm(term)(half, x0, level, noise, weight, {})
    assert torch.allclose(both - plain, level.s * 7.0)
