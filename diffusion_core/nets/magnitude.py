"""Layers that preserve magnitude: inputs of variance one give outputs of variance one, at the start and ever after.

Karras et al. 2024 (arXiv 2312.02696), appendix B. A weight's size has no effect on what its layer computes, and is set back
before each step of training, so that the learning rate means the same for all layers and all the time.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, silu

from diffusion_core.nets.embedding import Fourier


def unit(x: Tensor, *dims: int, eps: float = 1e-4) -> Tensor:
    """x divided by its root mean square over the dimensions (all but the first by default); the square in float32."""
    over = dims or tuple(range(1, x.ndim))
    size = torch.linalg.vector_norm(x, dim=over, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    size = eps + size * math.sqrt(size.numel() / x.numel())
    return x / size.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square on standard normal input, eq. 81."""
    return silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, share: float) -> Tensor:
    """(1 - share) a + share b at preserved magnitude if the two are independent, eq. 88."""
    size = math.sqrt((1 - share) ** 2 + share**2)
    return torch.add(a * ((1 - share) / size), b, alpha=share / size)


def mp_cat(a: Tensor, b: Tensor, share: float = 0.5) -> Tensor:
    """Channels of both, each side contributing its share of the magnitude whatever its width, eq. 103."""
    na, nb = a.shape[1], b.shape[1]
    scale = math.sqrt((na + nb) / ((1 - share) ** 2 + share**2))
    return torch.cat([a * (scale / math.sqrt(na) * (1 - share)), b * (scale / math.sqrt(nb) * share)], 1)


class MPLayer(nn.Module):
    """A linear map of the last dimension (kernel 0) or a convolution, without bias, whose rows have unit norm, eq. 47."""

    def __init__(self, inp: int, out: int, kernel: int = 0) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.randn(out, inp, *[kernel] * 2 if kernel else []))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        fan_in = self.weight[0].numel()
        weight = (unit(self.weight) * (gain / math.sqrt(fan_in))).to(x.dtype)
        return conv2d(x, weight, padding=self.kernel // 2) if self.kernel else linear(x, weight)

    @torch.no_grad()
    def set_back(self) -> None:
        """Forced weight normalisation, eq. 66: the weight to the size that it was born with."""
        self.weight.copy_(unit(self.weight))


class MPFourier(nn.Module):
    """A number `[B]` as cosines `[B, width]` of random frequencies and phases, of variance one. Eq. 75."""

    frequencies: Tensor
    phases: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        # Spread evenly where the paper draws at random, so that the network's weights are all of its randomness.
        self.register_buffer("frequencies", Fourier(2 * width, 0.1, 4.0).frequencies * 2 * math.pi, False)
        self.register_buffer("phases", torch.arange(width) * (2 * math.pi * 0.6180339887), False)

    def forward(self, c: Tensor) -> Tensor:
        precise = torch.promote_types(c.dtype, torch.float32)
        turn = c[:, None].to(precise) * self.frequencies + self.phases
        return (turn.cos() * math.sqrt(2)).to(c.dtype)
