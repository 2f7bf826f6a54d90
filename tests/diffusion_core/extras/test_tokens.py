"""Discrete diffusion of codes: the bound is the entropy for a perfect guesser, sampling keeps its distribution, nets learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.codecs import Latent, Tokens
from diffusion_core.conditioning import WEIGHT
from diffusion_core.extras import tokens
from diffusion_core.extras.corruptions import process_time
from diffusion_core.nets.autoencoder import Autoencoder
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.unet import UNet
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


def test_a_sample_does_not_depend_on_its_batch() -> None:
    recipe = tokens.masked(3)
    whole = generate(guesser, recipe.timesteps(4), recipe.step, (9,), 5, torch.arange(7), codes=3)
    parts = generate(guesser, recipe.timesteps(4), recipe.step, (9,), 5, torch.arange(7), batch=3, codes=3)
    assert torch.equal(whole, parts) and torch.equal(
        whole[2:4], generate(guesser, recipe.timesteps(4), recipe.step, (9,), 5, torch.tensor([2, 3]), codes=3)
    )


@pytest.mark.parametrize("method", ["masked", "absorbing"])
def test_a_net_for_pictures_learns_two_pictures_of_codes(method: str) -> None:
    """Each sample is one of the two, both occur, and the condition chooses between them."""
    data = torch.stack([torch.arange(16) % 4, torch.arange(16) // 4])
    torch.manual_seed(0)
    net = PatchTransformer(4, 1, channels=8, width=32, depth=2, heads=2, conds={"vec:which": 2}, out=4)
    recipe = tokens.masked(4) if method == "masked" else tokens.absorbing(4)
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
        return generate(denoiser, recipe.timesteps(16), recipe.step, (16,), 0, ids, cond, codes=4)

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
