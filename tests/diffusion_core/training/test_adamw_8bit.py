"""AdamW with moments of 8 bits: its trajectory beside AdamW's, what it stores, resumption."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_core import MLP, TrainConfig, Trainer, presets, rng
from diffusion_core.training.adamw_8bit import BLOCK, LEAST, AdamW8bit, dequantised, quantised


def values(signed: bool) -> Tensor:
    """Numbers over many decades, with a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10 * BLOCK + 7, generator=generator) * 10 ** (
        4 * torch.rand(10 * BLOCK + 7, generator=generator) - 4
    )
    x[BLOCK : 2 * BLOCK] = 0
    return x if signed else x.abs()


def test_codes_stand_for_the_values() -> None:
    for signed in (True, False):
        x = values(signed)
        codes, scales = quantised(x, signed)
        assert codes.dtype == torch.uint8 and len(codes) == len(x) and len(scales) == 11
        again = dequantised(codes, scales, signed)
        largest = scales.repeat_interleave(BLOCK)[: len(x)]
        assert ((again - x).abs() <= 0.008 * largest).all()
        assert torch.equal(again == 0, x == 0) if not signed else (again[x == 0] == 0).all()
        near = x.abs() > 0.1 * largest
        assert ((again - x).abs() <= 0.08 * x.abs())[near].all()
        assert torch.equal(quantised(again, signed)[0], codes)  # what is stored stays as it is


def trainer(optimiser: str, images: int) -> Trainer:
    """A small network; its two largest matrices have moments of 8 bits."""
    x0 = rng.normal((2,), 3, torch.arange(512)) @ torch.tensor([[0.5, 0.4], [0.0, 0.3]])
    recipe = presets.edm(sd=0.5)
    torch.manual_seed(0)
    net = MLP(d=2, width=64)
    config = TrainConfig(images=images, batch=32, optimiser=optimiser, learning_rate=2e-3, weight_decay=0.01)
    return Trainer(recipe.denoiser(net), recipe, config, lambda i: (x0[i], {}), len(x0))


def test_the_trajectory_is_that_of_adamw() -> None:
    ours, theirs = trainer("adamw_8bit", 32 * 60), trainer("adamw", 32 * 60)
    start = {name: p.detach().clone() for name, p in ours.parameters.items()}
    losses = []
    while not ours.done:
        losses.append((ours.step().loss, theirs.step().loss))
    mine, reference = torch.tensor(losses).T
    assert (mine - reference).abs().mean() < 0.02 * reference.mean()
    for name, parameter in ours.parameters.items():
        moved = (theirs.parameters[name] - start[name]).norm()
        assert (parameter - theirs.parameters[name]).norm() < 0.15 * moved, name
    large = [p for p in ours.parameters.values() if p.numel() >= LEAST]
    assert large
    for parameter in large:
        stored = sum(value.numel() * value.element_size() for value in ours.optimizer.state[parameter].values())
        assert stored < 2.1 * parameter.numel()


def test_resumed_it_has_the_same_bits() -> None:
    whole, first, second = (trainer("adamw_8bit", 32 * 8) for _ in range(3))
    for _ in range(5):
        first.step()
    second.load_state(*first.state())
    for some in (whole, second):
        while not some.done:
            some.step()
    wanted, resumed = whole.state()[0], second.state()[0]
    assert wanted.keys() == resumed.keys() and any(value.dtype == torch.uint8 for value in wanted.values())
    assert all(torch.equal(value, resumed[name]) for name, value in wanted.items())


def test_a_weight_whose_gradients_stop_does_not_run_away() -> None:
    """A second moment that is rounded to zero beside a first one that is not would divide by zero."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    optimiser = AdamW8bit([{"params": [parameter]}], 1e-3, (0.9, 0.99), 0.0)
    for step in range(40):
        parameter.grad = torch.zeros(64, 64)
        parameter.grad[0, 0] = 1.0  # the largest of the block
        if step == 0:
            parameter.grad[0, 1:] = torch.logspace(-7, -1, 63)
        optimiser.step()
    assert parameter.abs().max() < 0.05
