"""Low-rank adaptation: laws of the change, of copies and of training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import presets, rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Preconditioned
from diffusion_core.lora import Adapted, Adapter, merge, targets
from diffusion_core.training.trainer import TrainConfig, Trainer


class Net(nn.Module):
    """A convolution, and a linear layer over the channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kernel = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Tensor:
        out: Tensor = self.inner(self.kernel(x).movedim(1, -1)).movedim(-1, 1)
        return out + c_noise.reshape(-1, 1, 1, 1)


def adapted(net: Net, rank: int = 2, alpha: float = 4.0, trained: bool = True) -> Adapted:
    layers = targets(net, ["kernel", "inner.0", "inner.2"])
    adapter = Adapter(layers, rank, alpha, seed=1)
    if trained:
        for i, change in enumerate(adapter.named().values()):
            change.up.data = 0.1 * rng.normal(change.up.shape, i, torch.zeros(1, dtype=torch.int64))[0]
    return Adapted(net, layers, adapter)


X = rng.normal((3, 4, 4), 0, torch.arange(5))
INPUT: Any = (X, torch.ones(5), {})


def test_an_untrained_change_and_a_change_of_scale_or_rank_zero_are_the_network_itself() -> None:
    plain = Net()(*INPUT)
    assert torch.equal(adapted(Net(), trained=False)(*INPUT), plain)
    none = adapted(Net())
    assert not torch.equal(none(*INPUT), plain)
    none.adapter.scaled(0)
    assert torch.equal(none(*INPUT), plain)
    assert torch.equal(adapted(Net(), rank=0)(*INPUT), plain)


@pytest.mark.parametrize("autocast", [True, False])
def test_a_layers_output_keeps_its_type(autocast: bool) -> None:
    """In bfloat16, by autocast or because the network's weights are stored so."""
    net = Net() if autocast else Net().bfloat16()
    types: list[torch.dtype] = []
    net.inner[1].register_forward_pre_hook(lambda _, inputs: types.append(inputs[0].dtype))
    x = X if autocast else X.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        adapted(net)(x, torch.ones(5), {})
    assert types == [torch.bfloat16]


def test_merged_weights_give_what_the_adapter_gives() -> None:
    net = Net()
    changed = adapted(net)
    wanted = changed(*INPUT)
    merge(targets(net, ["kernel", "inner.0", "inner.2"]), changed.adapter)
    assert (net(*INPUT) - wanted).abs().max() < 1e-5


def test_copies_share_the_network_and_have_adapters_of_their_own() -> None:
    net = Net()
    first = adapted(net)
    second = copy.deepcopy(first)
    assert second.frozen.module is net and second.adapter is not first.adapter
    assert set(first.state_dict()) == {
        f"adapter.layers.{name}.{part}" for name in ("kernel", "inner/0", "inner/2") for part in ("down", "up")
    }
    with torch.no_grad():
        second.adapter.scaled(2)
        once, twice, plain = (module(*INPUT) for module in (first, second, net))
    assert not torch.equal(once, twice)
    with torch.no_grad():
        assert torch.equal(first(*INPUT), once) and torch.equal(net(*INPUT), plain)
    assert torch.equal(plain, Net()(*INPUT))


def test_weights_are_named_as_in_peft_and_others_are_refused() -> None:
    one, other = adapted(Net()).adapter, adapted(Net(), trained=False).adapter
    assert "inner.0.lora_A.weight" in one.tensors()
    other.load(one.tensors())
    assert all(torch.equal(other.tensors()[name], value) for name, value in one.tensors().items())
    with pytest.raises(ValueError, match="other layers"):
        other.load({})
    with pytest.raises(ValueError, match="instead of"):
        adapted(Net(), rank=3).adapter.load(one.tensors())
    with pytest.raises(ValueError, match="absent"):
        targets(Net(), ["absent"])


def trainer(net: Net) -> Trainer:
    recipe = presets.ddpm()
    config = TrainConfig(images=96, batch=16, learning_rate=1e-2, ema_halflife_images=16)
    return Trainer(recipe.denoiser(adapted(net, trained=False)), recipe, config, lambda i: (X[i % 5], {}), n=5)


def test_training_resumes_with_the_same_bits_and_leaves_the_network_alone() -> None:
    net = Net()
    whole = trainer(net)
    while not whole.done:
        whole.step()
    before = trainer(Net())
    for _ in range(3):
        before.step()
    after = trainer(Net())
    after.load_state(*before.state())
    while not after.done:
        after.step()
    for name, value in whole.state()[0].items():
        assert torch.equal(after.state()[0][name], value), name
    assert not any("frozen" in name or "kernel.weight" in name for name in whole.state()[0])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), Net().parameters(), strict=True))
    averaged = whole.averaged()
    assert isinstance(averaged, Preconditioned) and isinstance(averaged.net, Adapted)
    assert averaged.net.frozen.module is net and averaged.net.adapter.layers["kernel"].up.abs().max() > 0


def test_recomputed_activations_have_the_change_in_the_backward_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    gradients = []
    for recompute in (False, True):
        net = Net()
        changed = adapted(net)
        changed.recomputed = recompute
        if recompute:
            plain = net.inner.forward
            net.inner.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)
        changed(*INPUT).square().mean().backward()
        gradients.append([p.grad for p in changed.adapter.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)
