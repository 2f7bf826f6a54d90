"""AdamW whose two moments are stored in 8 bits: 2 bytes for each trained weight instead of 8.

Blockwise dynamic quantisation, Dettmers et al. 2022 (arXiv 2110.02861), with one difference. Stored is the square root of the
second moment, and a value above zero never becomes zero. A weight whose second moment were rounded to zero and whose first
one were not would make a step of any length; the paper avoids that for language models with a layer of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

BLOCK = 256  # values that share a scale; a large one costs the precision of 255 others at most
LEAST = 4096  # parameters with fewer weights keep moments of 32 bits: they are many biases and little memory
EXPONENTS = 7  # decades below the largest value of a block that a code can stand for


@cache
def code_values(signed: bool) -> Tensor:
    """The 256 numbers, ascending, that the codes stand for, in -1 ... 1 or 0 ... 1: float32 `[256]`.

    In each decade they are evenly spaced, twice as many as in the decade below: the paper's dynamic tree.
    """
    values = [0.0, 1.0]
    for exponent in range(EXPONENTS):
        count = 2**exponent * (1 if signed else 2)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        positive = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - EXPONENTS + 1)).tolist()
        values += positive
        values += [-value for value in positive] if signed else []
    return torch.tensor(values).sort().values


def quantised(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """Codes uint8 `[n]` of the n values, and the largest magnitude of each block of them, float32 `[ceil(n / BLOCK)]`.

    The error is at most 0.8% of that. Without signs, a value above zero stays above zero.
    """
    flat = torch.nn.functional.pad(x.flatten().float(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1)
    values = code_values(signed).to(x.device)
    between = (values[:-1] + values[1:]) / 2
    normalised = flat / torch.where(scales > 0, scales, 1)[:, None]
    codes = torch.bucketize(normalised, between)
    if not signed:
        codes = torch.where((codes == 0) & (flat > 0), 1, codes)
    return codes.to(torch.uint8).flatten()[: x.numel()].clone(), scales


def dequantised(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The numbers float32 `[n]` that codes `[n]` stand for."""
    values = code_values(signed).to(codes.device)[codes.int()]
    return values * scales.repeat_interleave(BLOCK)[: len(codes)]


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (Loshchilov & Hutter 2019) with 8-bit moments; the arithmetic of a step is in 32 bits.

    State of a parameter: `step`; the codes `exp_avg` and `exp_avg_sqrt`, with `exp_avg_scales` and `exp_avg_sqrt_scales`. With
    fewer than LEAST weights, `exp_avg` and `exp_avg_sqrt` are the numbers.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override] # no closure is used
        """One step of every parameter that has a gradient."""
        if closure is not None:
            raise ValueError("AdamW8bit takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        beta1, beta2 = group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            zeros = torch.zeros_like(parameter, dtype=torch.float32)
            self._store(state, zeros, zeros)
        state["step"] = state["step"].cpu() + 1  # a resumed training may have put it on a GPU
        step = float(state["step"])
        mean, root = self._moments(state, parameter)
        gradient = parameter.grad.float()  # type: ignore[union-attr] # `step` has seen to that
        mean = mean.lerp(gradient, 1 - beta1)
        square = (root.square() * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        root = square.sqrt()
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = root / (1 - beta2**step) ** 0.5 + group["eps"]
        parameter.addcdiv_(mean.to(parameter), denominator.to(parameter), value=-group["lr"] / (1 - beta1**step))
        self._store(state, mean, root)

    @staticmethod
    def _moments(state: dict[str, Tensor], parameter: Tensor) -> tuple[Tensor, Tensor]:
        """First moment and root of the second, float32 in the parameter's shape."""
        if parameter.numel() < LEAST:
            return state["exp_avg"], state["exp_avg_sqrt"]
        moments = [
            dequantised(state[name], state[f"{name}_scales"], signed).view(parameter.shape)
            for name, signed in (("exp_avg", True), ("exp_avg_sqrt", False))
        ]
        return moments[0], moments[1]

    @staticmethod
    def _store(state: dict[str, Tensor], mean: Tensor, root: Tensor) -> None:
        for name, value, signed in (("exp_avg", mean, True), ("exp_avg_sqrt", root, False)):
            if value.numel() < LEAST:
                state[name] = value
            else:
                state[name], state[f"{name}_scales"] = quantised(value, signed)
