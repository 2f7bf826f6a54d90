"""Low-rank adaptation (LoRA): small trained changes of some layers of a frozen network. Hu et al. 2021 (arXiv 2106.09685).

A layer W gets W x + (alpha / rank) up(down(x)) with `down` to `rank` channels and `up` back. `up` begins at zero, so that
training begins with the frozen network. The frozen network is shared: copies of an adapted one, such as an average of the
weights, hold their own adapter and the same network, and a checkpoint has the adapter only.

An adapter may also have new columns of linear layers, which is how a model learns categories that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from diffusion_core import rng

DOWN, UP = "lora_A", "lora_B"  # the names of peft
COLUMNS = "columns"


class LowRank(nn.Module):
    """The change of one layer: x -> scale up(down(x)). A convolution's `down` has its kernel, stride and padding."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        self.scale = scale
        self.convolution: dict[str, Any] = {}
        device = _device(layer)
        shape = (rank, *layer.weight.shape[1:])
        if isinstance(layer, nn.Conv2d):
            self.convolution = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        down = rng.normal(shape, seed, torch.zeros(1, dtype=torch.int64))[0] / rank
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(layer.weight.shape[0], rank, *[1] * (len(shape) - 2), device=device))

    def forward(self, x: Tensor) -> Tensor:
        """The change of the layer's output for its input x."""
        x = x.to(self.down.dtype)
        if self.convolution:
            change = functional.conv2d(functional.conv2d(x, self.down, **self.convolution), self.up)
        else:
            change = functional.linear(functional.linear(x, self.down), self.up)
        return change * self.scale

    def matrix(self) -> Tensor:
        """The change of the layer's weight."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).reshape(len(self.up), *self.down.shape[1:])


class LastColumns(nn.Module):
    """The change of the last columns of a linear layer's weight, which begins at zero: x -> scale columns x[-count:]."""

    def __init__(self, layer: nn.Linear, count: int) -> None:
        super().__init__()
        self.scale = 1.0
        self.before = layer.in_features - count
        self.columns = nn.Parameter(torch.zeros(layer.out_features, count, device=_device(layer)))

    def forward(self, x: Tensor) -> Tensor:
        """The change of the layer's output for its input x."""
        return functional.linear(x[..., self.before :].to(self.columns), self.columns) * self.scale

    def matrix(self) -> Tensor:
        """The change of the layer's weight."""
        return functional.pad(self.scale * self.columns, (self.before, 0))


def _device(layer: nn.Linear | nn.Conv2d) -> torch.device:
    """Where the weight of a layer is; the CPU, if it is moved in from elsewhere only while the layer computes."""
    return torch.device("cpu") if layer.weight.is_meta else layer.weight.device


Change = LowRank | LastColumns


class Adapter(nn.Module):
    """The changes of several layers by name, none of them low-rank at rank 0. Parameters are `layers.<name>.down` and `.up`,
    or `.columns`, with `/` for the dots of a name.

    `columns`: how many of the last columns of other, linear layers change freely.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Linear | nn.Conv2d],
        rank: int,
        alpha: float,
        seed: int = 0,
        columns: Mapping[str, tuple[nn.Linear, int]] | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        changes: dict[str, Change] = {
            name: LowRank(layer, rank, alpha / rank, rng.fold(seed, number))
            for number, (name, layer) in enumerate(layers.items() if rank else ())
        }
        changes |= {name: LastColumns(layer, count) for name, (layer, count) in (columns or {}).items()}
        self.layers = nn.ModuleDict({name.replace(".", "/"): change for name, change in changes.items()})

    def named(self) -> dict[str, Change]:
        """The changes by the names of the layers."""
        return {name.replace("/", "."): change for name, change in self.layers.items() if isinstance(change, Change)}

    def tensors(self) -> dict[str, Tensor]:
        """The weights as peft names them, `<layer>.lora_A.weight` and `<layer>.lora_B.weight`; new columns are
        `<layer>.columns`."""
        tensors: dict[str, Tensor] = {}
        for name, change in self.named().items():
            if isinstance(change, LastColumns):
                tensors[f"{name}.{COLUMNS}"] = change.columns.detach()
            else:
                tensors |= {f"{name}.{DOWN}.weight": change.down.detach(), f"{name}.{UP}.weight": change.up.detach()}
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take weights as `tensors` gives them. Raises ValueError if names or shapes differ."""
        own = self.tensors()
        if own.keys() != tensors.keys():
            raise ValueError(f"the adapter has other layers: {sorted(own.keys() ^ tensors.keys())[:2]}")
        for name, value in own.items():
            if value.shape != tensors[name].shape:
                raise ValueError(f"{name} is {list(tensors[name].shape)} instead of {list(value.shape)}")
            value.copy_(tensors[name])

    def scaled(self, factor: float) -> None:
        """Multiply the change by a factor; 0 gives the frozen network bit for bit."""
        for change in self.named().values():
            change.scale *= factor


def targets(net: nn.Module, names: Iterable[str]) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear layers and convolutions of a network whose name is one of these, or ends with a dot and one of these.

    Raises ValueError for a name that no layer has.
    """
    wanted = tuple(names)
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and _matches(name, wanted)
    }
    for name in wanted:
        if not any(_matches(layer, (name,)) for layer in layers):
            raise ValueError(f"no linear layer or convolution of the network is called {name}")
    grouped = [name for name, layer in layers.items() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    if grouped:
        raise ValueError(f"{grouped[0]} is a convolution in groups, which has no low-rank change")
    return layers


def _matches(name: str, wanted: tuple[str, ...]) -> bool:
    return any(name == one or name.endswith(f".{one}") for one in wanted)


class Frozen:
    """Keeps a module out of the parameters, the state and the copies of the module that holds it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


class Adapted(nn.Module):
    """A frozen network with an adapter, called as the network is. Parameters and state are those of the adapter.

    `layers`: the layers of the network that change, see `targets`. The network itself is not changed: called without this
    module, it is the frozen one. `recomputed`: the network recomputes activations in the backward pass, where the adapter must
    still be in place; a forward pass with gradients then leaves it there.
    """

    def __init__(
        self, net: nn.Module, layers: Mapping[str, nn.Linear | nn.Conv2d], adapter: Adapter, recomputed: bool = False
    ) -> None:
        super().__init__()
        self.recomputed = recomputed
        self.frozen = Frozen(net)
        self.adapter = adapter
        self.hooked = _hooked(net, layers)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """What the network returns with the adapter's changes."""
        self.hooked.adapter = self.adapter
        try:
            result: Tensor = self.frozen.module(*inputs, **named)
        finally:
            if not (self.recomputed and torch.is_grad_enabled()):
                self.hooked.adapter = None
        return result


class _Hooked:
    """Which adapter the layers of a network use now; one for each network, shared by copies of `Adapted`."""

    def __init__(self) -> None:
        self.adapter: Adapter | None = None
        self.layers: set[str] = set()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hooked:
        return self

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        key = name.replace(".", "/")

        def change(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self.adapter is None or key not in self.adapter.layers:
                return None
            changed = self.adapter.layers[key]
            assert isinstance(changed, Change)
            # The output keeps its type (bfloat16 under autocast), so that a change of zero changes nothing in later layers.
            return None if changed.scale == 0 else output + changed(inputs[0]).to(output.dtype)

        return change


_HOOKED = "_low_rank_hooks"


def _hooked(net: nn.Module, layers: Mapping[str, nn.Linear | nn.Conv2d]) -> _Hooked:
    hooked = net.__dict__.setdefault(_HOOKED, _Hooked())
    assert isinstance(hooked, _Hooked)
    for name, layer in layers.items():
        if name not in hooked.layers:
            layer.register_forward_hook(hooked.hook(name))
            hooked.layers.add(name)
    return hooked


@torch.no_grad()
def merge(layers: Mapping[str, nn.Linear | nn.Conv2d], adapter: Adapter) -> None:
    """Add an adapter's changes to the weights of the layers: the network then needs no adapter."""
    for name, change in adapter.named().items():
        layers[name].weight += change.matrix().to(layers[name].weight)
