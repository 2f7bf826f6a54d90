"""The optimiser of a training: AdamW for every parameter, its moments in 32 or 8 bits, or Muon for the hidden matrices and
AdamW for the rest.

Muon orthogonalises the momentum of a weight matrix, so that every direction of the matrix moves by the same amount (Jordan
et al. 2024, https://kellerjordan.github.io/posts/muon/). A convolution kernel counts as a matrix of output channels by
everything else. `torch.optim.Muon` refuses kernels and sharded parameters, hence this one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from diffusion_core.training import parallel
from diffusion_core.training.adamw_8bit import AdamW8bit
from diffusion_core.training.compute import blocks

Name = Literal["adamw", "adamw_8bit", "muon"]
MUON = "muon"  # key of a parameter group that Muon updates
SCALE = "scale"  # key of a parameter group: its learning rate as a multiple of the configured one

ITERATIONS = 5
AT_ONCE = 16  # matrices of one shape that a rank orthogonalises in one batch: bounds the memory
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3, x^5: a fixed point near 1 and a slope at 0 as steep as possible


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `muon: True` hold matrices and kernels that Muon updates instead.

    `momentum` decays Muon's average of the gradients, used with Nesterov's look-ahead. The update has spectral norm
    sqrt(max(1, rows / columns)), so that a learning rate carries over between widths. State names: `momentum` for Muon's
    parameters, AdamW's own for the others. The ranks share the matrices out among them: each orthogonalises some of them, whole
    also where the parameters are sharded.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, object]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        fused: bool,
        dtype: torch.dtype = torch.float32,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
        self.dtype = dtype  # in which matrices are orthogonalised
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # no closure is used
        """One step of every group."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        every = self.param_groups
        self.param_groups = [group for group in every if not group.get(MUON)]
        try:
            super().step()
        finally:
            self.param_groups = every
        for group in every:
            if group.get(MUON):
                for parameters in _of_one_shape(group["params"]):
                    self._update(parameters, group["lr"], group["weight_decay"])

    def _update(self, parameters: list[nn.Parameter], rate: float, weight_decay: float) -> None:
        """Update parameters whose matrices have one shape, apart from transposition, as one batch."""
        rank, world = parallel.ranks()
        share = -(-len(parameters) // world)
        looked_ahead = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"]
            average.lerp_(parameter.grad, 1 - self.momentum)
            ahead = parallel.full_tensor(parameter.grad.lerp(average, self.momentum)).flatten(1)
            looked_ahead.append(ahead.mT if _tall(ahead.shape) else ahead)
        # Every rank orthogonalises its share of the matrices; zeros fill up the last shares.
        own = looked_ahead[rank * share : (rank + 1) * share]
        own += [torch.zeros_like(looked_ahead[0])] * (share - len(own))
        updates = parallel.all_gather_tensor(orthogonalised(torch.stack(own), self.dtype))
        for parameter, update in zip(parameters, updates, strict=False):
            update = update.to(parameter.dtype)
            if _tall(parameter.flatten(1).shape):
                update = update.mT * math.sqrt(update.shape[1] / update.shape[0])
            parameter.mul_(1 - rate * weight_decay)
            parameter.add_(parallel.shard_like(update.reshape(parameter.shape), parameter), alpha=-rate)


def _tall(shape: torch.Size) -> bool:
    return shape[0] > shape[1]


def _of_one_shape(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters with a gradient, grouped by the shape of their matrices apart from transposition, at most AT_ONCE a rank."""
    groups: dict[tuple[int, int], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            rows, columns = parameter.shape[0], parameter.numel() // parameter.shape[0]
            groups.setdefault((min(rows, columns), max(rows, columns)), []).append(parameter)
    size = AT_ONCE * parallel.ranks()[1]
    return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrices `[..., rows, columns]`, rows <= columns, with all singular values near 1 (within 0.7 to 1.2).

    Five Newton-Schulz iterations x <- p(x x') x in `dtype`, where p is the polynomial of COEFFICIENTS; bfloat16 is exact
    enough. In float32, wide matrices iterate on the product of the p alone, which is square and costs less.
    """
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    wide = x.shape[2] >= 2 * x.shape[1] and dtype != torch.bfloat16  # which would lose the small singular values
    x = _product_of_polynomials(x @ x.mT) @ x if wide else _iterated(x)
    return x.reshape(matrices.shape)


def _iterated(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _product_of_polynomials(gram: Tensor) -> Tensor:
    """The matrix that `_iterated` multiplies x by, from x x'. All matrices here are polynomials of x x', so they commute."""
    a, b, c = COEFFICIENTS
    product: Tensor | None = None
    for iteration in range(ITERATIONS):
        p = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        product = p if product is None else p @ product
        if iteration < ITERATIONS - 1:
            gram = p @ gram @ p  # x x' of the next x, which is p x
    assert product is not None
    return product


def hidden_matrices(net: nn.Module) -> set[nn.Parameter]:
    """The parameters that Muon is for: matrices and kernels of the repeated blocks. The first and last layers, embeddings,
    biases and scales are AdamW's."""
    inner = {
        id(p): p for block in blocks(net) for p in block.parameters() if p.ndim >= 2 and min(p.flatten(1).shape) > 1
    }
    return set(inner.values())


def build(
    name: Name,
    learned: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    muon_learning_rate: float,
    weight_decay: float,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> torch.optim.Optimizer:
    """The optimiser of `parameters`, which are those of `learned` that train.

    dtype: in which Muon orthogonalises. The groups say their `scale`, see `set_rate`; AdamW updates the parameters of a module
    with a `rate_scale` at that multiple of its rate, and with the module's `betas` if it has any.
    """
    betas, fused = (0.9, 0.99), device.type == "cuda"
    own = {
        id(p): (float(module.rate_scale), getattr(module, "betas", betas))  # type: ignore[arg-type]
        for module in learned.modules()
        if hasattr(module, "rate_scale")
        for p in module.parameters()
    }
    scaled = [
        {"params": [p for p in parameters.values() if own.get(id(p)) == key], SCALE: key[0], "betas": key[1]}
        for key in sorted(set(own.values()))
    ]
    parameters = {key: p for key, p in parameters.items() if id(p) not in own}
    if name in ("adamw", "adamw_8bit"):
        groups = [{"params": list(parameters.values()), SCALE: 1.0}] if parameters else []
        groups += scaled
        if name == "adamw_8bit":
            return AdamW8bit(groups, learning_rate, betas, weight_decay)
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=fused)
    hidden = hidden_matrices(learned)
    ours = [p for p in parameters.values() if p in hidden]
    rest = [p for p in parameters.values() if p not in hidden]
    scale = muon_learning_rate / learning_rate
    groups = [{"params": ours, MUON: True, SCALE: scale}] if ours else []
    groups += [{"params": rest, SCALE: 1.0}] if rest else []
    groups += scaled
    return Muon(groups, learning_rate, betas, weight_decay, fused, dtype)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step: `rate` for AdamW's parameters, in proportion for Muon's."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group[SCALE]
