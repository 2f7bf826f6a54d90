"""The memory of a computation, against what is known of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffusion_core import MLP, TrainConfig, Trainer, presets, rng
from diffusion_core.training import memory
from diffusion_core.training.compute import Compute
from diffusion_core.training.memory import PeakMemory

MIB = 2**20


def test_tensors_that_are_alive_at_once_are_counted_and_those_from_outside_are_not() -> None:
    given = torch.ones(MIB)
    with PeakMemory() as measured:
        a = given + 1  # 4 MiB
        b = a.view(1024, 1024).T  # no memory
        b.mul_(2)
        del a, b
        kept = given * 2
        more = torch.cat([kept, kept])  # 8 MiB beside 4
        del more
    assert measured.peak == 12 * MIB and measured.live == 4 * MIB
    del kept
    assert measured.live == 0


def test_activations_are_what_the_backward_pass_needs() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(4)))
    x = torch.ones(
        1024, 256
    )  # 1 MiB; so are the inputs of the linear layers and the results of tanh, of which it keeps one
    with PeakMemory() as measured:
        layers(x).sum().backward()
    weights = sum(p.numel() for p in layers.parameters()) * 4  # their gradients
    assert 4 * MIB <= measured.peak <= 6 * MIB + weights


def trainer(batch: int = 12, **compute: object) -> Trainer:
    """A small network."""
    recipe = presets.edm(sd=0.5)
    torch.manual_seed(0)
    x0 = rng.normal((2,), 0, torch.arange(64))
    optimiser = compute.pop("optimiser", "adamw")
    config = TrainConfig(images=240, batch=batch, optimiser=optimiser)
    net = recipe.denoiser(MLP(d=2, width=64))
    return Trainer(net, recipe, config, lambda i: (x0[i], {}), len(x0), compute=Compute(**compute))


def test_the_memory_of_a_micro_batch_is_found_from_one_and_two_examples() -> None:
    made = trainer()
    weights = {name: p.detach().clone() for name, p in made.parameters.items()}
    estimate = memory.of_micro_batch(made)
    assert estimate == pytest.approx(memory._peak(made, 12), rel=0.1)
    assert memory.of_micro_batch(trainer(microbatch=3)) < 0.6 * estimate
    untouched = trainer()
    assert all(torch.equal(p, weights[name]) and not p.grad.any() for name, p in made.parameters.items())
    assert made.step().loss == untouched.step().loss


@pytest.mark.parametrize("optimiser", ["adamw", "adamw_8bit"])
def test_the_memory_of_the_optimiser_is_what_it_then_has(optimiser: str) -> None:
    made = trainer(optimiser=optimiser)
    expected = memory.of_optimiser(made)
    made.step()
    states = (made.optimizer.state[p].items() for p in made.parameters.values())
    assert sum(v.numel() * v.element_size() for state in states for name, v in state if name != "step") == expected
