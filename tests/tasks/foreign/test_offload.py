"""Sequential offload: the same bits, and few weights on the device at once.

On a machine without a GPU the device is the CPU, too; a weight that travels is then a copy, which is counted while it lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

import accelerate.hooks

from diffusion_core import rng
from tasks.config.sampling import SamplingChoices
from tasks.foreign import adapter as adapters
from tasks.foreign import model
from tasks.foreign.model import ForeignModel
from tasks.foreign.offload import offload, waiting
from tests.support import tiny_pipelines

CPU = torch.device("cpu")
HOW = SamplingChoices(sampler="euler", steps=2, guidance=2.0)
# What is recomputed as a whole in the backward pass.
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock")


class Travelling:
    """Counts the bytes of the weights that accelerate has brought to the device and that are alive there."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.live = self.peak = 0
        bring = accelerate.hooks.set_module_tensor_to_device

        def brought(module: nn.Module, name: str, device: Any, value: Tensor | None = None, **more: Any) -> None:
            if value is not None:
                value = value.clone()
                self._count(value)
            bring(module, name, device, value=value, **more)

        patch.setattr(accelerate.hooks, "set_module_tensor_to_device", brought)

    def _count(self, weight: Tensor) -> None:
        storage = weight.untyped_storage()
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


def loaded(published: Path) -> ForeignModel:
    """The model without offload. Its weights are copied, since where they lie in memory changes rounding."""
    base = model.load(published, None, CPU)
    for weight in base.net.parameters():
        weight.data = weight.data.clone()
    return base


def size(parameters: Iterable[Tensor]) -> int:
    """Bytes of weights."""
    return sum(p.numel() * p.element_size() for p in parameters)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stored(tmp_path_factory.mktemp("published") / "sd", "sd")


@pytest.mark.parametrize("kind", tiny_pipelines.KINDS)
def test_a_layer_at_a_time_draws_the_same_bits(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_pipelines.stored(tmp_path / kind, kind)
    base = loaded(source)
    cond, ids = base.conditions(["1", "2"]), torch.arange(2)
    plain = base.latents(cond, HOW, 0, ids, 64)
    layers = [size(module.parameters(recurse=False)) for module in base.net.modules()]
    offloaded, travelling = model.load(source, None, CPU, offloaded=True), Travelling(monkeypatch)
    offload(offloaded)
    assert waiting(offloaded.net) == size(base.net.parameters())
    assert torch.equal(offloaded.latents(cond, HOW, 0, ids, 64), plain)
    assert travelling.peak == max(layers) and travelling.live == 0


def gradients(found: ForeignModel, recompute: bool, offloaded: bool) -> list[Tensor]:
    """Of a LoRA, by one example."""
    changed, adapter = adapters.adapted(found, 2, None, recompute=recompute)
    if offloaded:
        offload(found, recompute)
    for i, up in enumerate(p for name, p in adapter.named_parameters() if name.endswith("up")):
        up.data = 0.1 * rng.normal(up.shape, i, torch.zeros(1, dtype=torch.int64))[0]
    x, t = rng.normal((4, 8, 8), 0, torch.arange(1)), torch.tensor([500.0])
    changed.denoiser.net(x, t, found.conditions(["a cat"])).square().mean().backward()
    found_gradients = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert len(found_gradients) == len(list(adapter.parameters()))
    return found_gradients


def test_a_block_at_a_time_trains_with_the_same_bits(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = loaded(published)
    wanted = gradients(base, True, False)
    blocks = [module for module in base.net.modules() if type(module).__name__ in BLOCKS]
    inside = {id(p) for block in blocks for p in block.parameters()}
    others = size(p for p in base.net.parameters() if id(p) not in inside)  # the backward pass may need all of them
    offloaded = model.load(published, None, CPU, offloaded=True)
    travelling = Travelling(monkeypatch)
    got = gradients(offloaded, True, True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert travelling.peak <= others + max(size(block.parameters()) for block in blocks)
    assert travelling.live == 0 and waiting(offloaded.net) == size(base.net.parameters())
