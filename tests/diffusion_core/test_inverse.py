"""Inverse problems against the exact Gaussian posterior, processes, and conditioning transforms."""

import math
from itertools import pairwise

import pytest
import torch

from diffusion_core import inverse, rng, schedules
from diffusion_core.extras import closed_form, corruptions
from diffusion_core.nets.embedding import Embedding
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import Estimate, sample
from diffusion_core.sampling.solvers import ddim, dpmpp_2m
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.training import augmentation
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common.skeleton import MIRROR

D, NOISE = 6, 0.3


def problem():
    """Normal data, three measured combinations: prior, operator, one measurement, and the exact posterior."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(D, D, generator=generator, dtype=torch.float64) / D**0.5
    cov = root @ root.T + 0.05 * torch.eye(D, dtype=torch.float64)
    mean = torch.randn(D, generator=generator, dtype=torch.float64)
    a = torch.randn(3, D, generator=generator, dtype=torch.float64) / D**0.5
    y = torch.randn(3, generator=generator, dtype=torch.float64)
    gain = cov @ a.T @ torch.linalg.inv(a @ cov @ a.T + NOISE**2 * torch.eye(3, dtype=torch.float64))
    return mean, cov, a, y, mean + gain @ (y - a @ mean), cov - gain @ a @ cov


def test_moment_matching_is_the_exact_conditional_denoiser():
    mean, cov, a, y, mean_y, cov_y = problem()
    guided = inverse.moment_matching(closed_form.gaussian(mean, cov), a, y.expand(5, 3), NOISE)
    right = closed_form.gaussian(mean_y, cov_y)
    for here in timesteps.levels(schedules.trig(), torch.tensor([0.1, 0.4, 0.8])):
        x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(guided(x, here, {}), right(x, here, {}), rtol=0, atol=1e-11)


def test_pigdm_is_exact_where_its_assumption_holds_and_not_else():
    _, cov, a, y, _, _ = problem()
    here = schedules.trig()(torch.tensor(0.4, dtype=torch.float64))
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for prior, near in ((0.7**2 * torch.eye(D, dtype=torch.float64), True), (cov, False)):
        zero = torch.zeros(D, dtype=torch.float64)
        gain = prior @ a.T @ torch.linalg.inv(a @ prior @ a.T + NOISE**2 * torch.eye(3, dtype=torch.float64))
        right = closed_form.gaussian(gain @ y, prior - gain @ a @ prior)(x, here, {})
        for method in (
            inverse.pigdm(closed_form.gaussian(zero, prior), a, y.expand(5, 3), NOISE, 0.7),
            inverse.gaussian_posterior(
                closed_form.gaussian(zero, prior), a, y.expand(5, 3), NOISE, inverse.normal_prior(0.7)
            ),
        ):
            error = float((method(x, here, {}) - right).abs().max())
            assert (error < 1e-11) if near else (error > 1e-2), error


def test_sampling_with_moment_matching_has_the_posterior_mean_and_covariance():
    mean, cov, a, y, mean_y, cov_y = problem()
    n = 4000
    guided = inverse.moment_matching(closed_form.gaussian(mean, cov), a, y.expand(n, 3), NOISE)
    x = 80 * rng.normal((D,), 0, torch.arange(n)).double()
    with torch.no_grad():
        got = sample(guided, x, timesteps.karras(20), dpmpp_2m(), iter(()))
    assert float((got.mean(0) - mean_y).norm()) < 0.06
    assert float((torch.cov(got.T) - cov_y).norm() / cov_y.norm()) < 0.1


def test_descending_reduces_the_residual():
    mean, cov, a, y, _, _ = problem()
    here = sigma_level(torch.tensor(0.5, dtype=torch.float64))
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = closed_form.gaussian(mean, cov)

    def seen(v):
        return v @ a.T

    guided = inverse.dps(plain, seen, y.expand(5, 3), 0.1)
    before, after = ((seen(d(x, here, {})) - y).norm(dim=1) for d in (plain, guided))
    assert (after < before).all()


def test_projection_meets_the_measurement_and_touches_nothing_else():
    _, _, a, y, _, _ = problem()
    x = torch.randn(5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clean = inverse.project(a, y.expand(5, 3))(x, timesteps.clean(), iter([torch.zeros_like(x)]))
    torch.testing.assert_close(clean @ a.T, y.expand(5, 3))
    null = torch.linalg.svd(a).Vh[3:]
    torch.testing.assert_close(clean @ null.T, x @ null.T)


def test_operators_are_linear_and_have_their_matrix():
    shape = (2, 8, 8)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.3
    for operator in (inverse.inpaint(mask), inverse.downsample(4), inverse.blur(1.5, 3)):
        a = inverse.matrix(operator, shape)
        x = torch.randn(3, *shape, dtype=torch.float64)
        torch.testing.assert_close(operator(x), x.flatten(1) @ a.T)
    rows = inverse.matrix(inverse.blur(1.5, 3), shape).sum(1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


# Processes


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
    """A tiny net over 4 x 4 pictures and the share of the process that is past."""

    def __init__(self):
        super().__init__()
        self.embedding = Embedding(64, {})
        self.enter = torch.nn.Linear(16, 64)
        self.leave = torch.nn.Linear(64, 16)

    def forward(self, x, t, cond):
        h = torch.nn.functional.silu(self.enter(x.flatten(1)) + self.embedding(t, cond))
        return self.leave(h).view_as(x)


def test_cold_diffusion_learns_to_restore_in_the_same_loop():
    """Four pictures whose left halves tell them apart: once the right halves have faded, they come back."""
    left = (2 * torch.eye(4) - 1)[:, None, :, None].expand(4, 1, 4, 2)
    pictures = torch.cat([left, left.flip(0)], 3)
    degrade = corruptions.mask_degradation(torch.tensor([[0.0, 0.0, 1.0, 1.0]] * 4))
    path = schedules.trig()
    recipe = Recipe(
        target=None, weight=None,
        density=lambda u: path(u), loss=corruptions.cold_loss(degrade), form=lambda net, *_: corruptions.Direct(net),
        timesteps=lambda n: timesteps.uniform(path, n), step=corruptions.cold(degrade),
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


def test_blurring_removes_the_fine_before_the_coarse():
    degrade = corruptions.blur_degradation(3.0)
    basis = corruptions.cosine_basis(16)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16, dtype=torch.float64))
    keep = [float(degrade((basis[0][:, None] * basis[k])[None, None], torch.tensor(0.3)).norm()) for k in (0, 1, 4, 12)]
    assert keep[0] == pytest.approx(1) and keep == sorted(keep, reverse=True)
    assert keep[3] == pytest.approx(math.exp(-((0.3 * 3 * math.pi * 12 / 16) ** 2) / 2), rel=1e-4)


class Speller(torch.nn.Module):
    """A tiny net over tokens: each position from all the others, by one hidden layer."""

    def __init__(self, n, tokens):
        super().__init__()
        self.tokens = tokens
        self.embedding = Embedding(64, {})
        self.enter = torch.nn.Linear(n * (tokens + 1), 64)
        self.leave = torch.nn.Linear(64, n * tokens)

    def forward(self, x, t, cond):
        shown = torch.nn.functional.one_hot(x, self.tokens + 1).float().flatten(1)
        h = torch.nn.functional.silu(self.enter(shown) + self.embedding(t, cond))
        return self.leave(h).unflatten(1, (-1, self.tokens))


def test_masked_diffusion_learns_words_in_the_same_loops():
    """Four words over three letters: nearly all samples are words, and each word comes up."""
    words = torch.tensor([[0, 0, 1, 2], [2, 1, 1, 0], [1, 2, 0, 0], [2, 2, 2, 2]])
    path = schedules.trig()
    recipe = Recipe(
        target=None, weight=None,  # no linear target, no weight
        density=lambda u: path(u), loss=corruptions.masked_loss(3), form=lambda net, *_: corruptions.Direct(net),
        timesteps=lambda n: timesteps.uniform(path, n), step=corruptions.unmask(3),
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
    visits = []
    with torch.no_grad():
        out = sample(
            trainer.denoiser.eval(), torch.full((n, 4), 3), recipe.timesteps(4), recipe.step, noise,
            constrain=lambda x, here, noise: visits.append(x) or x,
        )  # fmt: skip
    match = (out[:, None] == words).all(-1)
    assert match.any(1).float().mean() > 0.9
    assert (match.sum(0) > n / 12).all()
    for earlier, later in pairwise(visits):
        shown = earlier != 3
        assert torch.equal(later[shown], earlier[shown]) and ((later == 3).sum(1) < (earlier == 3).sum(1)).all()


# Conditioning transforms and data statistics


def test_untouched_pictures_stay_and_flips_flip():
    x0 = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same, cond = augmentation.transform_pictures(x0, {}, augmentation.no_transform(3))
    assert torch.equal(same, x0) and not cond["vec:augment"].any()
    flip = augmentation.no_transform(3)
    flip[:, 0] = 1
    torch.testing.assert_close(augmentation.transform_pictures(x0, {}, flip)[0], x0.flip(-1), rtol=0, atol=1e-5)


def test_pictures_move_by_what_the_condition_says():
    """A bright dot at (x, y) from the centre goes to scale * turn (x, y) + shift."""
    size, at = 65, (10.0, -6.0)
    axis = torch.arange(size) - (size - 1) / 2
    dot = torch.exp(-((axis[None] - at[0]) ** 2 + (axis[:, None] - at[1]) ** 2) / 8)[None, None]
    angle = 0.4
    chosen = torch.tensor([[0.0, math.log(1.3), math.cos(angle) - 1, math.sin(angle), 0.05, -0.1]])
    moved = augmentation.transform_pictures(dot, {}, chosen)[0][0, 0]
    centre = ((moved.sum(0) * axis).sum() / moved.sum(), (moved.sum(1) * axis).sum() / moved.sum())
    x = 1.3 * (math.cos(angle) * at[0] - math.sin(angle) * at[1]) + 0.05 * size
    y = 1.3 * (math.sin(angle) * at[0] + math.cos(angle) * at[1]) - 0.1 * size
    assert float(centre[0]) == pytest.approx(x, abs=0.1) and float(centre[1]) == pytest.approx(y, abs=0.1)


def test_flipped_poses_swap_left_and_right():
    x0 = torch.randn(2, 33, 3, generator=torch.Generator().manual_seed(0))
    flip = augmentation.no_transform(2)
    flip[0, 0] = 1
    out, _ = augmentation.transform_poses(x0, {}, flip, MIRROR)
    assert torch.equal(out[1], x0[1])
    left, right = 15, 16  # wrists
    torch.testing.assert_close(out[0, left], x0[0, right] * torch.tensor([-1.0, 1, 1]))
    again, _ = augmentation.transform_poses(out, {}, flip, MIRROR)
    torch.testing.assert_close(again, x0)


def test_turned_poses_keep_their_bones():
    x0 = torch.randn(40, 33, 3, generator=torch.Generator().manual_seed(0))
    chosen = augmentation.random_transforms(3, torch.arange(40), 1.0, scale=0.0)
    out, cond = augmentation.transform_poses(x0, {}, chosen, MIRROR)
    mirrored = chosen[:, 0] == 1
    length = (x0[:, 11] - x0[:, 13]).norm(dim=1)
    mirror_length = (x0[:, 12] - x0[:, 14]).norm(dim=1)
    torch.testing.assert_close((out[:, 11] - out[:, 13]).norm(dim=1), torch.where(mirrored, mirror_length, length))
    assert torch.equal(cond["vec:augment"], chosen) and 5 < int(mirrored.sum()) < 35


def test_transforms_are_a_function_of_the_id():
    ids = torch.arange(1000)
    whole = augmentation.random_transforms(1, ids, 0.3)
    assert torch.equal(augmentation.random_transforms(1, ids[40:50], 0.3), whole[40:50])
    assert float((whole[:, 1] != 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(whole[:, 0].mean()) == pytest.approx(0.15, abs=0.04)


def test_noise_conditioning_tells_its_level():
    ids = torch.arange(500)
    cond = {"map:low": torch.ones(500, 3, 4, 4)}
    levels = augmentation.random_levels(lambda u: sigma_level(u), 0, ids)
    out = augmentation.add_condition_noise(cond, "map:low", levels, 1, ids)
    residual = (out["map:low"] - 1).flatten(1).std(1)
    torch.testing.assert_close(torch.tan(out["vec:low_level"][:, 0]), levels.sigma.float())
    assert float((residual / levels.sigma.float()).mean()) == pytest.approx(1, abs=0.05)
    fixed = augmentation.add_condition_noise(cond, "map:low", Level(torch.tensor(1.0), torch.tensor(0.0)), 1, ids)
    assert torch.equal(fixed["map:low"], cond["map:low"]) and not fixed["vec:low_level"].any()
