"""Discrete diffusion of codes: the bound is the entropy for a perfect guesser, sampling keeps its distribution, nets learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.codecs import Latent, Tokens
from diffusion_core.conditioning import WEIGHT
from diffusion_core.extras import tokens
from diffusion_core.extras.corruptions import process_time
from diffusion_core.guidance import cfg
from diffusion_core.nets.autoencoder import Autoencoder
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.unet import UNet
from diffusion_core.recipe import Recipe
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import Level, trig
from diffusion_core.training.lr_schedule import TrainConfig
from diffusion_core.training.trainer import Trainer

P = torch.tensor([0.6, 0.3, 0.1])


def guesser(x: Tensor, level: object, cond: object) -> Tensor:
    """Knows that tokens are independent with probabilities P."""
    return P.log().expand(*x.shape, 3)


def test_the_bound_of_a_perfect_guesser_is_the_entropy() -> None:
    """Independent tokens: the negative evidence lower bound in nats a token is exactly their entropy."""
    n, length = 4000, 16
    x0 = torch.multinomial(P, n * length, replacement=True, generator=torch.Generator().manual_seed(0)).reshape(n, -1)
    recipe = tokens.absorbing(3)
    level = recipe.density(recipe.draw(0, 0, n))
    noise = rng.normal((length,), 1, torch.arange(n))
    loss = recipe.loss(guesser, x0, level, noise, recipe.weight, {})
    entropy = -(P * P.log()).sum().item()
    assert loss.mean().item() == pytest.approx(entropy, abs=4 * loss.std().item() / math.sqrt(n))
    none = recipe.loss(guesser, x0, level, noise, recipe.weight, {WEIGHT: torch.zeros(n, 1, 4, 4)})
    assert not none.any()


@pytest.mark.parametrize("steps", [3, 12])
def test_ancestral_sampling_keeps_the_distribution_and_reveals_what_it_should(steps: int) -> None:
    recipe = tokens.absorbing(3)
    shares = []

    def watching(x: Tensor, level: Level, cond: object) -> Tensor:
        shares.append((process_time(level).item(), (x == 3).float().mean().item()))
        return guesser(x, level, cond)

    drawn = generate(watching, recipe.timesteps(steps), recipe.step, (16,), 0, torch.arange(800), codes=3)
    counts = torch.bincount(drawn.flatten(), minlength=4).double() / drawn.numel()
    torch.testing.assert_close(counts, torch.tensor([*P.tolist(), 0.0], dtype=torch.float64), atol=0.015, rtol=0)
    for time, share in shares:
        assert share == pytest.approx(time, abs=0.02)


CHAIN = 40


def posterior(x: Tensor, level: Level, cond: object) -> Tensor:
    """Log-probabilities of the clean token for independent ones, after uniform transitions."""
    kept = (1 - process_time(level)).expand(len(x))[:, None, None]
    likelihood = kept * torch.eye(3, dtype=torch.float64)[x] + (1 - kept) / 3
    return (P.double() * likelihood).log()


def test_the_bound_of_a_perfect_guesser_under_uniform_transitions_is_the_entropy() -> None:
    n, length = 4000, 16
    x0 = torch.multinomial(P, n * length, replacement=True, generator=torch.Generator().manual_seed(0)).reshape(n, -1)
    recipe = tokens.uniform(3, CHAIN)
    level = recipe.density(recipe.draw(0, 0, n))
    noise = rng.normal((length,), 1, torch.arange(n))
    loss = recipe.loss(posterior, x0, level, noise, recipe.weight, {})
    entropy = -(P * P.log()).sum().item()
    assert loss.mean().item() == pytest.approx(entropy, abs=4 * loss.std().item() / math.sqrt(n))
    assert loss.std().item() / math.sqrt(n) < 0.03
    worse = recipe.loss(guesser, x0, level, noise, recipe.weight, {}).mean()
    assert worse > entropy + 0.2  # it does not look at the tokens
    assert not recipe.loss(posterior, x0, level, noise, recipe.weight, {WEIGHT: torch.zeros(n, 1, 4, 4)}).any()


@pytest.mark.parametrize("steps", [1, 6])
def test_exchanging_tokens_keeps_the_distribution_at_every_time(steps: int) -> None:
    recipe = tokens.uniform(3)
    seen = []

    def watching(x: Tensor, level: Level, cond: object) -> Tensor:
        seen.append((process_time(level).item(), torch.bincount(x.flatten(), minlength=3) / x.numel()))
        return posterior(x, level, cond)

    timesteps, drawing = recipe.timesteps(steps), recipe.drawing(None)
    drawn = generate(watching, timesteps, recipe.step, (16,), 0, torch.arange(1000), **drawing)
    seen.append((0.0, torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()))
    for time, shares in seen:
        torch.testing.assert_close(shares, (1 - time) * P + time / 3, atol=0.015, rtol=0)


def test_uniform_transitions_of_bits_are_the_binomial_process() -> None:
    """A step with beta gives a bit b the mean b (1 - beta) + beta / 2 (arXiv 1503.03585); `backward` reverses it."""
    bits, then, now = torch.arange(2), torch.tensor(0.2).double(), torch.tensor(0.5).double()
    beta = 1 - (1 - now) / (1 - then)
    for mean0 in (0.1, 0.7):
        before = mean0 * (1 - then) + then / 2  # mean of the bit at `then`
        step = torch.stack([bits * (1 - beta) + beta / 2, 1 - (bits * (1 - beta) + beta / 2)])[
            0
        ]  # P(1 at now | b at then)
        likelihood = torch.stack([1 - step, step])  # [at now, at then]
        prior = torch.stack([1 - before, before])
        wanted = likelihood * prior / (likelihood * prior).sum(1, keepdim=True)
        kept = 1 - now
        of_x0 = torch.stack([torch.tensor(1 - mean0), torch.tensor(mean0)]).double() * (
            kept * torch.eye(2).double() + (1 - kept) / 2
        )
        guess = of_x0 / of_x0.sum(1, keepdim=True)  # p(clean | at now)
        found = tokens.backward(bits[:, None], guess[:, None], now, then)[:, 0]
        torch.testing.assert_close(found / found.sum(1, keepdim=True), wanted)
        torch.testing.assert_close(found.sum(1), torch.ones(2).double())


def test_guidance_sharpens_the_guess_of_tokens() -> None:
    """Guided logits are those of p(x | c)^w p(x)^(1 - w), as Muse draws them; the decoded shares follow."""
    asked = torch.tensor([0.3, 0.6, 0.1])
    guided = cfg(lambda x, level, cond: (asked if "vec:c" in cond else P).log().expand(*x.shape, 3), 2.0)
    wanted = asked**2 / P
    recipe = tokens.masked(3, temperature=1.0)
    cond = {"vec:c": torch.ones(800, 1)}
    drawn = generate(guided, recipe.timesteps(8), recipe.step, (16,), 0, torch.arange(800), cond, codes=3)
    shares = torch.bincount(drawn.flatten(), minlength=3) / drawn.numel()
    torch.testing.assert_close(shares, wanted / wanted.sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize("recipe", [tokens.masked(3), tokens.uniform(3)], ids=["masked", "uniform"])
def test_a_sample_does_not_depend_on_its_batch(recipe: Recipe) -> None:
    how = {**recipe.drawing(None), "denoiser": posterior}

    def draw(ids: Tensor, **more: Any) -> Tensor:
        known = {**how, "denoiser": guesser} if recipe.initial is None else how
        return generate(
            timesteps=recipe.timesteps(4), step=recipe.step, shape=(9,), seed=5, ids=ids, **known, **more
        )  # fmt: skip

    whole = draw(torch.arange(7))
    assert torch.equal(whole, draw(torch.arange(7), batch=3))
    assert torch.equal(whole[2:4], draw(torch.tensor([2, 3])))


@pytest.mark.parametrize("method", ["masked", "absorbing", pytest.param("uniform", marks=pytest.mark.slow)])
def test_a_net_for_pictures_learns_two_pictures_of_codes(method: str) -> None:
    """Each sample is one of the two, both occur, and the condition chooses between them."""
    data = torch.stack([torch.arange(16) % 4, torch.arange(16) // 4])
    torch.manual_seed(0)
    net = PatchTransformer(4, 1, channels=8, width=32, depth=2, heads=2, conds={"vec:which": 2}, out=4)
    recipe = {"masked": tokens.masked, "absorbing": tokens.absorbing, "uniform": tokens.uniform}[method](4)
    config = TrainConfig(
        images=64 * 100, batch=64, optimiser="muon", learning_rate=4e-3, muon_learning_rate=0.02, condition_dropout=0.2,
        ema_halflife_images=256,
    )  # fmt: skip
    trainer = Trainer(
        recipe.denoiser(tokens.TokenNet(net, 4, 4, 8)), recipe, config,
        lambda i: (data[i % 2], {"vec:which": torch.eye(2)[i % 2]}), 64,
    )  # fmt: skip
    while not trainer.done:
        trainer.step()
    denoiser, ids = trainer.averaged(), torch.arange(40)

    def draw(cond: dict[str, Tensor]) -> Tensor:
        return generate(denoiser, recipe.timesteps(16), recipe.step, (16,), 0, ids, cond, **recipe.drawing(denoiser))

    for which in (0, 1):
        asked = draw({"vec:which": torch.eye(2)[[which] * 40]})
        assert (asked == data[which]).all(1).float().mean() > 0.9
    free = draw({})
    share = [(free == one).all(1).float().mean().item() for one in data]
    assert min(share) > 0.1 and sum(share) > 0.4


def test_convolutions_serve_as_well() -> None:
    net = tokens.TokenNet(UNet(8, channels=6, width=16, depth=1, heads=1, out=5), 8, 5, 6)
    logits = tokens.TokenDenoiser(net)(torch.randint(0, 6, (2, 64)), trig()(torch.tensor(0.5)), {})
    assert logits.shape == (2, 64, 5) and bool(logits.isfinite().all())


def test_codes_are_what_the_codebook_makes_of_pictures() -> None:
    torch.manual_seed(0)
    x = torch.rand(6, 3, 16, 16) * 2 - 1
    net = Autoencoder(4, 6, widths=(8, 16), codes=12)
    net.start_from_pca(x)
    latent = Latent.fit(net, x, 0.5)
    codec = Tokens.of(latent)
    codes = codec.encode(x)
    assert codes.shape == (6, 16) and codes.dtype == torch.int64 and codec.codes == 12
    torch.testing.assert_close(codec.decode(codes), latent.decode(latent.encode(x)), atol=0.02, rtol=0)
    with pytest.raises(ValueError, match="codebook"):
        Tokens.of(Latent.fit(Autoencoder(4, 6, widths=()), x, 0.5))
