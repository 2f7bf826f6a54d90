"""Cold diffusion and masked diffusion in the common training and sampling loops."""

import math
from itertools import pairwise

import pytest
import torch

from diffusion_core import rng, schedules
from diffusion_core.extras import closed_form, corruptions
from diffusion_core.nets.embedding import Embedding
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import Estimate, sample
from diffusion_core.sampling.solvers import ddim
from diffusion_core.training.trainer import TrainConfig, Trainer


def test_cold_steps_with_added_noise_are_ddim():
    share, means = torch.tensor([0.4, 0.6], dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    oracle = closed_form.mixture(share, means, 0.3)
    steps = timesteps.uniform(schedules.trig(), 12, high=0.98)
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = x
    for here, to in pairwise(steps):
        x0 = oracle(state, here, {})
        eps = (state - here.a * x0) / here.s
        degrade = lambda clean, t, eps=eps: schedules.trig()(t).corrupt(clean, eps)  # noqa: E731
        state = corruptions.cold(degrade)([Estimate(here, state, x0)], to, None, iter(()))
    torch.testing.assert_close(state, sample(oracle, x, steps, ddim(), iter(())), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "degrade",
    [
        corruptions.blur_degradation(3.0),
        corruptions.mask_degradation(torch.tensor([[0.0, 1.0] * 4] * 8)),
        corruptions.downsample_degradation(4),
    ],
    ids=["blur", "mask", "downsample"],
)
def test_cold_diffusion_with_a_perfect_restorer_restores(degrade):
    x0 = torch.rand(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    zero, half = torch.tensor(0.0).double(), torch.tensor([0.5, 0.2, 0.9]).double()
    torch.testing.assert_close(degrade(x0, zero), x0)
    assert not torch.allclose(degrade(x0, half), x0)
    steps = timesteps.uniform(schedules.trig(), 5)
    got = sample(lambda x, here, cond: x0, degrade(x0, torch.tensor(1.0)), steps, corruptions.cold(degrade), iter(()))
    torch.testing.assert_close(got, x0)


class Restorer(torch.nn.Module):
    """A tiny network for 4 x 4 pictures and the time."""

    def __init__(self):
        super().__init__()
        self.embedding = Embedding(64, {})
        self.enter = torch.nn.Linear(16, 64)
        self.leave = torch.nn.Linear(64, 16)

    def forward(self, x, t, cond):
        h = torch.nn.functional.silu(self.enter(x.flatten(1)) + self.embedding(t, cond))
        return self.leave(h).view_as(x)


def test_cold_diffusion_learns_to_restore_in_the_same_loop():
    """The left halves identify four pictures, whose masked right halves are restored."""
    left = (2 * torch.eye(4) - 1)[:, None, :, None].expand(4, 1, 4, 2)
    pictures = torch.cat([left, left.flip(0)], 3)
    degrade = corruptions.mask_degradation(torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 4))
    schedule = schedules.trig()
    recipe = Recipe(
        target=None, weight=None,
        density=lambda u: schedule(u), loss=corruptions.cold_loss(degrade), form=lambda net, *_: corruptions.Direct(net),
        timesteps=lambda n: timesteps.uniform(schedule, n), step=corruptions.cold(degrade),
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Trainer(
        recipe.denoiser(Restorer()), recipe, TrainConfig(images=40_000, batch=100, learning_rate=5e-3),
        lambda i: (pictures[i % 4], {}), 4000,
    )  # fmt: skip
    while not trainer.done:
        trainer.step()
    faded = degrade(pictures, torch.tensor(1.0))
    with torch.no_grad():
        restored = sample(trainer.denoiser.eval(), faded, recipe.timesteps(5), recipe.step, iter(()))
    assert (faded - pictures).abs().mean() > 0.2
    assert (restored - pictures).abs().max() < 0.1


def test_blur_removes_fine_detail_first():
    degrade = corruptions.blur_degradation(3.0)
    basis = corruptions.cosine_basis(16)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16, dtype=torch.float64))
    keep = [float(degrade((basis[0][:, None] * basis[k])[None, None], torch.tensor(0.3)).norm()) for k in (0, 1, 4, 12)]
    assert keep[0] == pytest.approx(1) and keep == sorted(keep, reverse=True)
    assert keep[3] == pytest.approx(math.exp(-((0.3 * 3 * math.pi * 12 / 16) ** 2) / 2), rel=1e-4)


class Speller(torch.nn.Module):
    """A tiny network for tokens with one hidden layer."""

    def __init__(self, n, tokens):
        super().__init__()
        self.tokens = tokens
        self.embedding = Embedding(64, {})
        self.enter = torch.nn.Linear(n * (tokens + 1), 64)
        self.leave = torch.nn.Linear(64, n * tokens)

    def forward(self, x, t, cond):
        visible = torch.nn.functional.one_hot(x, self.tokens + 1).float().flatten(1)
        h = torch.nn.functional.silu(self.enter(visible) + self.embedding(t, cond))
        return self.leave(h).unflatten(1, (-1, self.tokens))


def test_masked_diffusion_learns_words_in_the_same_loops():
    """Four words over three letters: most samples are words, every word occurs, and unmasked tokens do not change."""
    words = torch.tensor([[0, 0, 1, 2], [2, 1, 1, 0], [1, 2, 0, 0], [2, 2, 2, 2]])
    schedule = schedules.trig()
    recipe = Recipe(
        target=None, weight=None,  # no linear target, no weight
        density=lambda u: schedule(u), loss=corruptions.masked_loss(3), form=lambda net, *_: corruptions.Direct(net),
        timesteps=lambda n: timesteps.uniform(schedule, n), step=corruptions.unmask(3),
    )  # fmt: skip
    torch.manual_seed(0)
    trainer = Trainer(
        recipe.denoiser(Speller(4, 3)), recipe, TrainConfig(images=40_000, batch=100, learning_rate=5e-3),
        lambda i: (words[i % 4], {}), 4000,
    )  # fmt: skip
    while not trainer.done:
        trainer.step()
    n = 400
    noise = rng.stream((4, 3), 1, torch.arange(n))
    visited = []
    with torch.no_grad():
        out = sample(
            trainer.denoiser.eval(), torch.full((n, 4), 3), recipe.timesteps(4), recipe.step, noise,
            constrain=lambda x, here, noise: visited.append(x) or x,
        )  # fmt: skip
    match = (out[:, None] == words).all(-1)
    assert match.any(1).float().mean() > 0.9
    assert (match.sum(0) > n / 12).all()
    for earlier, later in pairwise(visited):
        visible = earlier != 3
        assert torch.equal(later[visible], earlier[visible]) and ((later == 3).sum(1) < (earlier == 3).sum(1)).all()


@pytest.mark.parametrize("steps", [4, 16])
def test_unmasking_at_temperature_one_keeps_the_denoiser_s_distribution(steps):
    """Independent tokens with probability 0.7; at temperature 0 likely tokens are kept first, which raises their share."""
    logits = torch.tensor([0.7, 0.3]).log()

    def share(temperature):
        return float((decode(temperature) == 0).float().mean())

    def decode(temperature):
        noise = rng.stream((32, 2), 1, torch.arange(500))
        return sample(
            lambda x, level, cond: logits.expand(*x.shape, 2), torch.full((500, 32), 2),
            timesteps.uniform(schedules.trig(), steps), corruptions.unmask(2, temperature), noise,
        )  # fmt: skip

    assert share(1.0) == pytest.approx(0.7, abs=0.015)  # three standard errors are 0.011
    assert share(0.5) > 0.75 and share(0.0) > share(0.5)
    assert not (decode(1.0) == 2).any()


def test_cold_sampling_starts_from_the_law_of_degraded_examples():
    """Mean and covariance are those of the degraded examples; each sample is a function of its own noise."""
    generator = torch.Generator().manual_seed(0)
    x0 = (
        torch.randn(400, 6, 2, generator=generator, dtype=torch.float64)
        @ torch.tensor([[1.0, 0.5], [0.0, 0.3]]).double()
        + 2
    )
    degrade = corruptions.rows_degradation(0.5)
    initial = corruptions.GaussianStart.fit(degrade, x0)
    drawn = initial(torch.randn(20000, 6, 2, generator=generator, dtype=torch.float64))
    kept = x0[:, :3].flatten(1)
    assert torch.equal(drawn[:, 3:].abs().max(), torch.tensor(0.0).double())
    torch.testing.assert_close(drawn[:, :3].flatten(1).mean(0), kept.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn[:, :3].flatten(1).T.cov(), kept.T.cov(), atol=0.06, rtol=0)
    noise = torch.randn(5, 6, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(initial(noise)[2:3], initial(noise[2:3]))


def test_rows_fade_from_the_end():
    x0 = torch.ones(1, 3, 4, 2)
    half = corruptions.rows_degradation(0.5)(x0, torch.tensor(0.5))
    assert half[0, :, :2].eq(1).all() and half[0, :, 2:].eq(0.5).all()
