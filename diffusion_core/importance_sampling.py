"""Importance sampling of noise levels: draw levels with a large loss more often, and divide the loss by the density."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_UNIFORM_SHARE = 0.01  # of the density; keeps every bin's density above zero


class Importance(nn.Module):
    """A piecewise constant density on u in (0, 1), proportional to the root mean square of the loss in each bin.

    This choice minimises the variance of the estimate; dividing by the density leaves its expectation unchanged. Nichol &
    Dhariwal 2021 (arXiv 2102.09672), section 3.3, on bins instead of single steps. The state is in buffers, so that
    checkpoints contain it.
    """

    moment: Tensor
    seen: Tensor

    def __init__(self, bins: int = 32, memory: float = 0.9) -> None:
        super().__init__()
        self.memory = memory  # decay per batch of the running mean of squares
        self.register_buffer("moment", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.float64))

    def density(self) -> Tensor:
        """The density of the bins, mean 1, `[bins]`; uniform until every bin has been drawn."""
        if not bool((self.seen > 0).all()):
            return torch.ones_like(self.moment)
        root = self.moment.sqrt()
        return (1 - _UNIFORM_SHARE) * root / root.mean().clamp(min=1e-30) + _UNIFORM_SHARE

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform u `[B]` -> (u with this density, 1 / density), `[B]` each. Monotone, so stratified u stay stratified."""
        density = self.density().to(u)
        bins = len(density)
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / density.sum()])
        index = torch.searchsorted(edges, u, right=True).sub(1).clamp(0, bins - 1)
        fraction = (u - edges[index]) / (edges[index + 1] - edges[index])
        return ((index + fraction) / bins).clamp(1e-12, 1 - 1e-12), 1 / density[index]

    @torch.no_grad()
    def squares(self, u: Tensor, losses: Tensor) -> Tensor:
        """This rank's sums for `update`, `[2, bins]`: squared losses (before the division) and counts per bin."""
        bins = len(self.moment)
        index = (u * bins).long().clamp(0, bins - 1)
        sums = torch.zeros(2, bins, dtype=torch.float64, device=u.device)
        sums[0].index_add_(0, index, losses.detach().double() ** 2)
        sums[1].index_add_(0, index, torch.ones_like(u, dtype=torch.float64))
        return sums

    @torch.no_grad()
    def update(self, squares: Tensor) -> None:
        """Update the running means with the sums over all ranks, `[2, bins]`."""
        total, count = squares.to(self.moment)
        keep = torch.where(self.seen > 0, self.memory, 0.0)
        updated = keep * self.moment + (1 - keep) * total / count.clamp(min=1)
        self.moment.copy_(torch.where(count > 0, updated, self.moment))
        self.seen += count
