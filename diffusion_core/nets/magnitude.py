"""Layers that preserve magnitude: inputs of variance one give outputs of variance one, at initialisation and in training.

Karras et al. 2024 (arXiv 2312.02696), appendix B. A weight's norm has no effect on what its layer computes. It is reset before
each training step, so that a learning rate means the same in all layers and at all times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, silu

from diffusion_core.nets.embedding import FourierFeatures


def normalise(x: Tensor, *dims: int, eps: float = 1e-4) -> Tensor:
    """x divided by its root mean square over the dimensions (all but the first by default); the square in float32."""
    over = dims or tuple(range(1, x.ndim))
    norm: Tensor = torch.linalg.vector_norm(
        x, dim=over, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    )
    norm = eps + norm * math.sqrt(norm.numel() / x.numel())
    return x / norm.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square on standard normal input, eq. 81."""
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """(1 - t) a + t b at preserved magnitude if the two are independent, eq. 88."""
    scale = math.sqrt((1 - t) ** 2 + t**2)
    return torch.add(a * ((1 - t) / scale), b, alpha=t / scale)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Channels of a and b; b contributes the share t of the magnitude, however many channels each has. Eq. 103."""
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale / math.sqrt(na) * (1 - t)), b * (scale / math.sqrt(nb) * t)], 1)


class MPConv(nn.Module):
    """A convolution, or a linear map of the last dimension (kernel 0), without bias, whose rows have unit norm. Eq. 47."""

    def __init__(self, inp: int, out: int, kernel: int = 0) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(out, inp, *[kernel] * 2 if kernel else []))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan_in = self.weight[0].numel()
        weight = (normalise(self.weight) * (gain / math.sqrt(fan_in))).to(x.dtype)
        return conv2d(x, weight, padding=self.kernel // 2) if self.kernel else linear(x, weight)

    @torch.no_grad()
    def normalise_weight(self) -> None:
        """Forced weight normalisation, eq. 66: reset each row's root mean square to one, as at initialisation."""
        self.weight.copy_(normalise(self.weight))


def normalise_weights(module: nn.Module) -> None:
    """Reset the weights of all `MPConv` layers of the module to unit size, which does not change what they compute.

    Sharded weights are reset in place only outside FSDP's forward pass, where layers hold gathered copies.
    """
    for layer in module.modules():
        if isinstance(layer, MPConv):
            layer.normalise_weight()


class MPFourier(nn.Module):
    """A number `[B]` as cosines `[B, width]` of different frequencies and phases, of variance one. Eq. 75."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # The paper draws frequencies and phases at random. Evenly spread ones need not be stored with the weights.
        self.register_buffer("frequencies", FourierFeatures(2 * width, 0.1, 4.0).frequencies * 2 * math.pi, False)
        self.register_buffer("phases", torch.arange(width) * (2 * math.pi * 0.6180339887), False)

    def forward(self, c: Tensor) -> Tensor:
        precise = torch.promote_types(c.dtype, torch.float32)
        angles = c[:, None].to(precise) * self.frequencies + self.phases
        return (angles.cos() * math.sqrt(2)).to(c.dtype)
