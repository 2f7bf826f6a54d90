"""Codecs with a discriminator: each side gets its own gradient, the weight is that of the paper, and a kill changes nothing."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import relu

from diffusion_core.conditioning import WEIGHT
from diffusion_core.nets.autoencoder import Autoencoder
from diffusion_core.schedules import sigma_level
from diffusion_core.training import reconstruction
from diffusion_core.training.adversarial import AdversarialLoss, PatchDiscriminator, adaptive_weight
from diffusion_core.training.lr_schedule import TrainConfig
from diffusion_core.training.trainer import Trainer

X = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
LEVEL = sigma_level(torch.tensor(0.0))


def discriminator(seed: int = 0) -> PatchDiscriminator:
    torch.manual_seed(seed)
    net = PatchDiscriminator(width=16, depth=2, rate_scale=0.2)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn_like(value) * 0.1)
    return net


def autoencoder(codes: int = 0) -> Autoencoder:
    torch.manual_seed(3)
    net = Autoencoder(4, 8, widths=(8, 16), codes=codes)
    net.start_from_pca(X)
    return net


def trainer(loss: AdversarialLoss, codes: int = 0, images: int = 64) -> Trainer:
    recipe = reconstruction.recipe(0.05, loss)
    config = TrainConfig(images=images, batch=8, optimiser="muon", learning_rate=2e-3, seed=1)
    return Trainer(recipe.denoiser(autoencoder(codes)), recipe, config, lambda index: (X[index], {}), len(X))


def gradients(loss: AdversarialLoss, net: Autoencoder, cond: dict[str, Tensor] | None = None) -> list[Tensor]:
    denoiser = reconstruction.recipe(0.0).denoiser(net)
    value = loss(denoiser, X, LEVEL, torch.zeros_like(X), None, cond or {}).mean()
    parameters = [*net.parameters(), *loss.parameters()]
    return [torch.zeros_like(p) if g is None else g
            for p, g in zip(parameters, torch.autograd.grad(value, parameters, allow_unused=True), strict=True)]  # fmt: skip


def test_gradients_are_those_of_two_separate_losses() -> None:
    judge, net = discriminator(), autoencoder()
    loss = AdversarialLoss(judge, from_images=0, weight=0.5)
    loss.begin_step(0)
    both = gradients(loss, net)
    again = net.decode(net.encode(X))
    error, verdict = reconstruction.error(again, X).mean(), -judge(again).mean()
    penalty = net.penalty * net.encode(X).square().mean()
    last = net.last_layer
    norms = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (error, verdict)]
    share = adaptive_weight(error, verdict, last)
    torch.testing.assert_close(share, norms[0] / (norms[1] + 1e-6))
    expected = torch.autograd.grad(error + penalty + 0.5 * share.detach() * verdict, [*net.parameters()])
    hinge = (relu(1 - judge(X)).mean() + relu(1 + judge(again.detach())).mean()) / 2
    expected += torch.autograd.grad(hinge, [*judge.parameters()])
    for got, wanted in zip(both, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-6)


def test_before_its_time_it_is_the_plain_loss() -> None:
    loss, net = AdversarialLoss(discriminator(), from_images=100), autoencoder()
    loss.begin_step(99)
    plain = gradients(AdversarialLoss(), net)
    both = gradients(loss, net)
    assert all(torch.equal(a, b) for a, b in zip(plain, both, strict=False))
    assert not any(g.any() for g in both[len(plain) :])
    loss.begin_step(100)
    assert any(g.any() for g in gradients(loss, net)[len(plain) :])


def test_what_has_no_weight_is_not_judged() -> None:
    loss, net = AdversarialLoss(discriminator()), autoencoder()
    loss.begin_step(0)
    got = gradients(loss, net, {WEIGHT: torch.zeros(16, 1, 16, 16)})
    penalty = net.penalty * net.encode(X).square().mean()
    wanted = torch.autograd.grad(penalty, [*net.parameters()], allow_unused=True)
    for mine, theirs in zip(got, wanted, strict=False):
        torch.testing.assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs)


@pytest.mark.parametrize("codes", [0, 16])
def test_a_killed_training_goes_on_to_the_same_bits(codes: int) -> None:
    """The kill comes before, and the end after, the discriminator is switched on."""
    whole, first, second = (trainer(AdversarialLoss(discriminator(), from_images=32), codes) for _ in range(3))
    while not whole.done:
        whole.step()
    for _ in range(5):
        first.step()
    second.load_state(*copy.deepcopy(first.state()))
    while not second.done:
        second.step()
    ended, resumed = whole.state()[0], second.state()[0]
    assert any("discriminator" in name for name in ended if name.startswith("optimiser."))
    assert ended.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in ended.items())
    fresh = trainer(AdversarialLoss(discriminator(), from_images=32), codes).state()[0]
    moved = [name for name in ended if name.startswith("weights/loss.discriminator") and name.endswith(".weight")]
    assert moved and all(not torch.equal(ended[name], fresh[name]) for name in moved)


def test_the_discriminator_has_its_own_rate_and_clipping() -> None:
    training = trainer(AdversarialLoss(discriminator()))
    judge = {id(p) for name, p in training.parameters.items() if "discriminator" in name}
    groups = [(group["scale"], {id(p) for p in group["params"]}) for group in training.optimizer.param_groups]
    assert [scale for scale, members in groups if members & judge] == [0.2]
    assert next(members for scale, members in groups if members & judge) == judge
    assert {id(p) for p in training.clipped[1]} == judge and len(training.clipped) == 2
    plain = reconstruction.recipe(0.05)
    other = Trainer(plain.denoiser(autoencoder()), plain, TrainConfig(images=8, batch=8), lambda i: (X[i], {}), len(X))
    assert len(other.clipped) == 1


def test_the_discriminator_learns_to_tell_and_the_codec_to_deceive() -> None:
    """Pictures of noise, a codec of few numbers: blurred reconstructions. The adversarial term makes them rough again."""
    rough = {}
    for start in (0, 10**9):
        training = trainer(AdversarialLoss(discriminator(), from_images=start, weight=2.0), images=8 * 40)
        while not training.done:
            training.step()
        net = reconstruction.autoencoder(training.averaged())
        rough[start] = net.decode(net.encode(X)).diff(dim=-1).abs().mean().item()
    assert rough[0] > 1.1 * rough[10**9]


def test_a_perceptual_distance_is_added_and_not_trained() -> None:
    def distance(x: Tensor, y: Tensor) -> Tensor:
        return 3 * (x - y).square().flatten(1).mean(1)

    loss, net = AdversarialLoss(perceptual=distance), autoencoder()
    denoiser = reconstruction.recipe(0.0).denoiser(net)
    zeros = torch.zeros_like(X)
    plain = reconstruction.reconstruction_loss(denoiser, X, LEVEL, zeros, None, {})
    again = net.decode(net.encode(X))
    torch.testing.assert_close(loss(denoiser, X, LEVEL, zeros, None, {}), plain + distance(again, X))
    assert not list(loss.parameters())
