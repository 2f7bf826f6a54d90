"""What a network costs: its parameters, and the floating-point operations of one call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffusion_core.conditioning import Cond


def count_parameters(net: nn.Module) -> int:
    """The number of trained weights."""
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


@torch.no_grad()
def flops(net: Callable[[Tensor, Tensor, Cond], Tensor], x: Tensor, c_noise: Tensor, cond: Cond | None = None) -> int:
    """Operations of one forward call in matrix products, convolutions and attention; a multiply-add counts as two.

    A training step costs three times that, because the backward pass multiplies by the weights and by the activations.
    Elementwise operations are not counted. With net and inputs on the device "meta" nothing is computed.
    """
    counter = FlopCounterMode(display=False)
    with counter:
        net(x, c_noise, cond or {})
    return counter.get_total_flops()
