"""Mixed models against closed forms: bounds are the log-likelihood where everything is normal, games keep their equilibrium."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import mixture
from diffusion_core import rng, schedules
from diffusion_core.conditioning import DRAFT, LATENT, LOW
from diffusion_core.extras import closed_form, denoising_gan, diffflow, diffuse_vae, generators, lsgm
from diffusion_core.extras.parts import Versus
from diffusion_core.nets.mlp import MLP
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import solvers
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.targets import from_x0
from diffusion_core.training.trainer import TrainConfig, Trainer

SD = 0.5
MIXED: dict[str, Callable[[], Recipe]] = {
    "vae": lambda: generators.vae(SD),
    "gan": lambda: generators.gan(SD),
    "diffuse_vae": lambda: diffuse_vae.diffuse_vae(SD),
    "ddgan": lambda: denoising_gan.ddgan(SD),
    "lsgm": lambda: lsgm.lsgm(SD),
    "diffflow": lambda: diffflow.diffflow(SD, 8),
}


class Stub(nn.Module):
    """A network that is a given function of (x, c_noise, cond)."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.unused = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        return self.function(x, c_noise, cond)


def zeros(outputs: int = 1) -> Stub:
    return Stub(lambda x, c_noise, cond: torch.zeros(len(x), outputs * x.shape[1], dtype=x.dtype))


def normal(count: int, spread: float = SD, d: int = 2) -> Tensor:
    return spread * rng.normal((d,), 4, torch.arange(count)).double()


def log_density(x: Tensor, var: float) -> Tensor:
    return -0.5 * (x.square() / var + math.log(2 * math.pi * var)).sum(1)


def made(recipe: Recipe, **parts: nn.Module) -> Any:
    """The recipe's denoiser with these functions as its networks."""
    found: Any = recipe.denoiser(recipe.network(lambda maps, outputs: zeros(outputs)))
    for path, net in parts.items():
        part: Any = found.net
        *outer, name = path.split("__")
        for step in outer:
            part = part[step] if isinstance(part, nn.ModuleDict) else getattr(part, step)
        if isinstance(part, nn.ModuleDict):
            part[name] = net
        else:
            setattr(part, name, net)
    return found


def constant_encoder(mean: float, log_var: float, small: float) -> Stub:
    """q(z | x0) = N(mean x0 / sd, exp(log_var))."""
    return Stub(lambda x, c_noise, cond: torch.cat([(mean - 1) * x, torch.full_like(x, log_var - small)], 1))


def test_the_bound_of_a_vae_with_the_true_posterior_is_the_log_likelihood() -> None:
    """z ~ N(0, 1), x0 = w z + noise of variance v: the posterior is normal, and the bound is tight for every x0."""
    w, v = 0.4, 0.04
    recipe = generators.vae(SD)
    gain, var = w * SD / (w**2 + v), v / (w**2 + v)
    model = made(
        recipe,
        coder__encoder=constant_encoder(gain, math.log(var), -3.0),
        coder__decoder=Stub(lambda z, c_noise, cond: (w / SD - 1) * z),
    )
    model.coder.log_var.data.fill_(math.log(v / SD**2))
    model = model.double()
    x0 = normal(50).repeat_interleave(2000, 0)
    level = recipe.density(torch.zeros(len(x0), dtype=torch.float64))
    nll = recipe.loss(model, x0, level, normal(len(x0), 1.0).flip(0), recipe.weight, {}).reshape(50, -1).mean(1)
    gap = log_density(x0[::2000], w**2 + v) + 2 * nll
    assert float(gap.abs().max()) < 0.15 and abs(float(gap.mean())) < 0.015, gap
    model.net["coder"].encoder = constant_encoder(0.0, 0.0, -3.0)
    worse = recipe.loss(model, x0, level, normal(len(x0), 1.0).flip(0), recipe.weight, {}).reshape(50, -1).mean(1)
    assert bool((worse > nll).all())


def test_the_bound_of_lsgm_with_true_encoder_and_prior_is_the_log_likelihood() -> None:
    """Latents N(0, r^2) whose denoiser is exact, a linear decoder: the sum of all terms is log p(x0), for normal x0."""
    r, w, v = 0.7, 0.4, 0.02
    recipe = lsgm.lsgm(SD)

    def prior(x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        level = schedules.logsnr_level(-8 * c_noise)  # by the noise embedding
        a, s = level.like(x)
        exact = a * r**2 / (a**2 * r**2 + s**2) * x
        return from_x0(exact, x, level, recipe.target)

    spread = (w * r) ** 2 + v
    model = made(
        recipe,
        denoiser=Stub(prior),
        coder__encoder=constant_encoder(w * r**2 * SD / spread, math.log(r**2 * v / spread), -3.0),
        coder__decoder=Stub(lambda z, c_noise, cond: (w / SD - 1) * z),
    )
    model.coder.log_var.data.fill_(math.log(v / SD**2))
    x0 = normal(3000, spread**0.5)
    gap = log_density(x0, spread) - lsgm.bound(recipe, model.double(), x0, draws=32)
    error = float(gap.std()) / math.sqrt(len(x0))
    assert error < 0.05 and abs(float(gap.mean())) < 0.01 + 2 * error, (gap.mean(), error)


def test_the_bound_of_diffflow_on_normal_data_is_the_log_likelihood_for_any_forward_drift() -> None:
    """With the exact backward step; a learned forward process needs another one, and without it the bound is loose."""
    recipe = diffflow.diffflow(SD, 12)
    model = made(recipe, denoiser=zeros(2), drift=zeros()).double()  # zeros are the exact denoiser of N(0, SD^2)
    x0 = normal(4000)
    exact = log_density(x0, SD**2)
    gap = exact - diffflow.bound(recipe, model, x0, draws=2)
    assert float(gap.abs().max()) < 1e-2  # the prior at log-SNR -6, and the small last step
    model.net["drift"] = Stub(lambda x, c_noise, cond: 0.5 * x)
    assert float((exact - diffflow.bound(recipe, model.double(), x0, draws=2)).mean()) > 0.02


@pytest.mark.parametrize("steps", [1, 4])
def test_a_denoising_gan_whose_generator_draws_from_the_posterior_draws_from_the_data(steps: int) -> None:
    """Normal data: x0 given x is normal, and the latent draws it; the mean alone would lose its variance."""
    recipe = denoising_gan.ddgan(SD, steps)
    model = made(recipe)

    def draw(x: Tensor, level: Level, cond: Any) -> Tensor:
        a, s = level.like(x)
        total = (a * SD) ** 2 + s**2
        return a * SD**2 / total * x + SD * s / total.sqrt() * cond[LATENT]

    drawn = generate(draw, recipe.timesteps(9), recipe.step, (2,), 0, torch.arange(8000), **recipe.drawing(model))
    assert float(drawn.var()) == pytest.approx(SD**2, rel=0.04)
    assert len(recipe.timesteps(9)) == steps + 1


def test_the_pairs_of_a_denoising_gan_are_drawn_alike() -> None:
    """With the posterior as generator, real and drawn pairs have one covariance, at every level: no discriminator can win."""
    recipe = denoising_gan.ddgan(SD, 3)
    seen: list[Tensor] = []

    def judge(x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        seen.append(torch.cat([x, cond[LATENT]], 1).detach())
        return x * 0

    def draw(x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        sigma = torch.exp(4 * c_noise)[:, None]  # x has standard deviation 1 here
        return (SD * x + sigma * cond[LATENT]) / torch.sqrt(SD**2 + sigma**2)

    model = made(recipe, generator=Stub(draw), discriminator=Stub(lambda *given: judge(*given).mean(1))).double()
    x0 = normal(20000)
    for u in (0.1, 0.5, 0.9):
        seen.clear()
        level = recipe.density(torch.full((len(x0),), u, dtype=torch.float64))
        torch.manual_seed(0)
        recipe.loss(model, x0, level, normal(len(x0), 1.0).roll(1, 0), recipe.weight, {})
        real, fake = seen[0].T.cov(), seen[1].T.cov()
        torch.testing.assert_close(real, fake, atol=0.04, rtol=0)
        torch.testing.assert_close(real.diag(), torch.ones(4).double(), atol=0.05, rtol=0)


def test_the_game_has_the_gradients_of_both_sides() -> None:
    """A linear discriminator u . x and a shifted generator: all gradients are known, the penalty's among them."""
    u, shift, gamma = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.5, 0.1]).double(), 2.0
    recipe = generators.gan(1.0)
    model = made(recipe)
    judge = nn.Linear(2, 1, bias=False).double()
    judge.weight.data.copy_(u[None])
    own = Stub(lambda x, c_noise, cond: judge(x)[:, 0])
    own.judge = judge
    model.net["discriminator"] = own
    moved = shift.clone().requires_grad_()
    real = torch.zeros(200_000, 2, dtype=torch.float64)
    torch.manual_seed(0)
    loss = Versus(gamma, 0.01)(model, real, real + moved, 0.0, {})
    loss.mean().backward()
    margin = float(u @ shift)  # fake minus real
    assert loss.mean().item() == pytest.approx(math.log1p(math.exp(-margin)), abs=1e-6)
    torch.testing.assert_close(moved.grad, -torch.sigmoid(torch.tensor(-margin)).double() * u, atol=1e-6, rtol=0)
    ours = torch.sigmoid(torch.tensor(margin)).double() * shift + 2 * gamma * u  # two penalties gamma / 2 |u|^2
    torch.testing.assert_close(judge.weight.grad[0], ours, atol=0.02, rtol=0)


PATTERN = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # detail that no 2 x 2 average shows


def test_a_super_resolution_gan_is_held_to_the_averages_and_to_nothing_else() -> None:
    """A discriminator that says nothing leaves log 2 and the content: detail costs nothing, a shift its square."""
    x0 = torch.randn(6, 1, 4, 4, dtype=torch.float64)
    low = nn.functional.interpolate(nn.functional.avg_pool2d(x0, 2), scale_factor=2.0)
    noise, level = torch.randn_like(x0), Level(torch.zeros(6).double(), torch.ones(6).double())
    recipe = generators.gan(SD, content=3.0)
    for shift in (0.0, 0.2):
        detail = 0.7 * PATTERN.double().repeat(2, 2) + shift
        model = made(recipe, generator=Stub(lambda x, c, cond, detail=detail: detail.expand_as(x) / SD))
        cond = {LOW: low}
        torch.testing.assert_close(model(noise, level, cond), low + detail)
        cost = recipe.loss(model, x0, level, noise, None, cond)
        torch.testing.assert_close(cost, torch.full_like(cost, math.log(2) + 3.0 * (shift / SD) ** 2))
        real = torch.zeros_like(x0)
        real[..., :2] = 1.0  # half of the picture is padding
        weighed = recipe.loss(model, x0, level, noise, None, {**cond, "weight:x": real})
        torch.testing.assert_close(weighed, torch.full_like(cost, math.log(2) + 1.5 * (shift / SD) ** 2))


class Flat(nn.Module):
    """An MLP of pictures of four pixels, given the smaller picture, which is one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(4, 64, 2, {LOW: 4}, out=4)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Any) -> Tensor:
        given = {key: value.flatten(1) for key, value in cond.items()}
        out: Tensor = self.net(x.flatten(1), c_noise, given).reshape(x.shape)
        return out


@pytest.mark.slow
def test_a_super_resolution_gan_learns_the_law_of_large_pictures_given_the_small_one() -> None:
    """The detail is one of two patterns, of which the brighter pictures have the first more often; their mean would be blur."""

    def data(ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        u = rng.uniform((2,), 3, ids)
        bright = (u[:, 0] < 0.5).float()
        sign = torch.where(u[:, 1] < 0.2 + 0.6 * bright, 1.0, -1.0)
        low = (bright - 0.5).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        return low + 0.4 * sign.reshape(-1, 1, 1, 1) * PATTERN, {LOW: low}

    torch.manual_seed(0)
    recipe = generators.gan(SD, gamma=0.3)  # with 0.1 some trainings draw one pattern only
    config = TrainConfig(
        images=300 * 128, batch=128, learning_rate=2e-3, warmup_images=20 * 128, cooldown_images=100 * 128,
        ema_halflife_images=15 * 128,
    )  # fmt: skip
    trainer = Trainer(recipe.denoiser(recipe.network(lambda maps, outputs: Flat())), recipe, config, data, 10**6)
    while not trainer.done:
        trainer.step()
    model, ids = trainer.averaged(), torch.arange(2000)
    _, cond = data(ids + 10**6)
    drawn = generate(model, recipe.timesteps(1), recipe.step, (1, 2, 2), 0, ids, cond, **recipe.drawing(model))
    detail = ((drawn - cond[LOW]) * PATTERN).mean((1, 2, 3))
    bright = cond[LOW][:, 0, 0, 0] > 0
    assert float((drawn.mean((1, 2, 3)) - cond[LOW][:, 0, 0, 0]).abs().mean()) < 0.05
    assert float((detail.abs() - 0.4).abs().mean()) < 0.1  # either pattern, not their mean
    for group, share in ((bright, 0.8), (~bright, 0.2)):
        assert float((detail[group] > 0).float().mean()) == pytest.approx(share, abs=0.12)


def test_a_sample_of_diffuse_vae_keeps_its_draft() -> None:
    """x0 = draft + noise: with the exact denoiser given the draft, samples have the law of the data; one draft a sample."""
    recipe = diffuse_vae.diffuse_vae(SD)
    model = made(recipe, coder__decoder=zeros()).double()
    seen: list[Tensor] = []

    def exact(x: Tensor, level: Level, cond: Any) -> Tensor:
        draft = SD * cond[DRAFT]
        seen.append(draft)
        a, s = level.like(x)
        return draft + a * 0.01 / (a**2 * 0.01 + s**2) * (x - a * draft)

    how = {
        "timesteps": recipe.timesteps(40),
        "step": solvers.unipc(),
        "shape": (2,),
        "seed": 3,
        **recipe.drawing(model),
    }
    drawn = generate(exact, ids=torch.arange(4000), **how)
    assert float(drawn.var()) == pytest.approx(SD**2 + 0.01, rel=0.05)
    assert all(torch.equal(draft, seen[0]) for draft in seen)
    assert float((drawn - seen[0]).var()) == pytest.approx(0.01, rel=0.06)
    assert torch.equal(drawn[5:7], generate(exact, ids=torch.tensor([5, 6]), **how))


@pytest.mark.parametrize("name", MIXED)
def test_a_mixed_model_trains_resumes_and_draws_rows_alone(name: str) -> None:
    def trainer() -> Trainer:
        recipe = MIXED[name]()
        torch.manual_seed(0)
        net = recipe.network(
            lambda maps, outputs: MLP(2, 16, 1, {"vec:c": 2, **dict.fromkeys(maps, 2)}, out=2 * outputs)
        )
        config = TrainConfig(images=96, batch=32, condition_dropout=0.2)
        data = lambda i: (mixture.draw(1, i), {"vec:c": torch.eye(2)[i % 2]})  # noqa: E731
        return Trainer(recipe.denoiser(net), recipe, config, data, 1000)

    whole, part = trainer(), trainer()
    losses = [whole.step().loss for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    part.step()
    again = trainer()
    again.load_state(*part.state())
    assert [again.step().loss for _ in range(2)] == losses[1:]
    unused = [key for key, p in whole.parameters.items() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert not unused
    model, recipe = whole.averaged(), whole.recipe
    step = solvers.unipc() if name in ("diffuse_vae", "lsgm") else recipe.step
    cond = {"vec:c": torch.eye(2)[torch.arange(6) % 2]}

    def draw(ids: Tensor, **more: Any) -> Tensor:
        given = {key: value[ids] for key, value in cond.items()}
        return generate(model, recipe.timesteps(4), step, (2,), 0, ids, given, **recipe.drawing(model), **more)

    drawn = draw(torch.arange(6))
    assert drawn.shape == (6, 2) and len(drawn.unique(dim=0)) == 6
    torch.testing.assert_close(draw(torch.arange(6), batch=4), drawn)
    torch.testing.assert_close(draw(torch.tensor([3])), drawn[3:4])
    level = sigma_level(torch.tensor(0.3, dtype=torch.float64))
    assert recipe.error is not None
    error = recipe.error(model, mixture.draw(2, torch.arange(5)), level, torch.randn(5, 2), {})
    assert error.shape == (5,) and bool((error >= 0).all())


def test_a_truncated_start_may_have_its_noise_already() -> None:
    """TDPM's start is x itself, ES-DDPM's a clean example to which noise is added: both are exact with the exact denoiser."""
    level = sigma_level(torch.tensor(0.6, dtype=torch.float64))
    levels = [level, *(sigma_level(torch.tensor(s, dtype=torch.float64)) for s in (0.4, 0.25, 0.15, 0.08, 0.04, 0.02))]
    levels = [*levels, sigma_level(torch.tensor(0.0, dtype=torch.float64))]
    clean = mixture.draw(1, torch.arange(3000))
    noisy = clean + 0.6 * rng.normal((2,), 9, torch.arange(3000))
    law = mixture.quantiles(3000)
    distances = [
        mixture.w2_to_law(
            generate(mixture.denoiser(), levels, solvers.dpmpp_2m(), (2,), 0, torch.arange(3000), start=start, start_noise=n),
            law,
        )
        for start, n in ((clean, 1.0), (noisy, 0.0), (noisy, 1.0), (clean, 0.0))
    ]  # fmt: skip
    assert max(distances[:2]) < 0.07 < min(distances[2:]) + 0.03, distances


def trained(recipe: Recipe, steps: int, rate: float, batch: int = 256, width: int = 96) -> Any:
    torch.manual_seed(0)
    net = recipe.network(lambda maps, outputs: MLP(2, width, 3, dict.fromkeys(maps, 2), out=2 * outputs))
    images = steps * batch
    config = TrainConfig(
        images, batch, rate, warmup_images=20 * batch, cooldown_images=images // 3, ema_halflife_images=images // 20
    )
    trainer = Trainer(recipe.denoiser(net), recipe, config, lambda i: (mixture.draw(1, i), {}), 10**6)
    while not trainer.done:
        trainer.step()
    return trainer.averaged()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "rate"), [
    ("vae", 500, 3e-3), ("gan", 700, 1e-3), ("diffuse_vae", 500, 3e-3), ("ddgan", 700, 1e-3), ("lsgm", 500, 3e-3),
    ("diffflow", 250, 4e-3),
])  # fmt: skip
def test_a_mixed_model_learns_the_mixture(name: str, steps: int, rate: float) -> None:
    """A normal law of the same width has a distance of 0.16; bounds lie below the exact log-density, and near it."""
    recipe = MIXED[name]()
    model = trained(recipe, steps, rate)
    n = 2000
    step = solvers.unipc() if name in ("diffuse_vae", "lsgm") else recipe.step
    denoiser = model.posterior if name == "diffflow" else model
    drawn = generate(denoiser, recipe.timesteps(16), step, (2,), 0, torch.arange(n), **recipe.drawing(model))
    assert mixture.w2_to_law(drawn, mixture.quantiles(n)) < 0.11
    if name in ("lsgm", "diffflow"):
        x0 = mixture.draw(99, torch.arange(n))
        clean = sigma_level(torch.tensor(0.0, dtype=torch.float64))
        exact = closed_form.mixture_logp(x0.double(), clean, mixture.WEIGHTS, mixture.MEANS, mixture.SDS)
        bound = {"lsgm": lsgm.bound, "diffflow": diffflow.bound}[name](recipe, model, x0)
        gap = exact - bound
        assert -3 * float(gap.std()) / n**0.5 < float(gap.mean()) < 0.6


def test_rows_at_different_levels_are_scaled_each_by_its_own() -> None:
    level = Level(torch.tensor([1.0, 0.5]).double(), torch.tensor([0.1, 2.0]).double())
    recipe = lsgm.lsgm(SD)
    model = made(recipe).double()
    x = normal(2)
    both = model(x, level, {})
    alone = torch.cat([model(x[i : i + 1], Level(level.a[i], level.s[i]), {}) for i in range(2)])
    torch.testing.assert_close(both, alone)
