"""Importance sampling of levels: where the loss is large look more often, and divide by how often."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_FLOOR = 0.01  # share of the draws that stays uniform


class Importance(nn.Module):
    """A piecewise constant density on u in (0, 1), proportional to the root mean square of the loss in each bin.

    That choice has the least variance; dividing by the density keeps the expectation. Nichol & Dhariwal 2021 (arXiv
    2102.09672), section 3.3, on bins instead of steps. Its state is in buffers, so that a checkpoint has it.
    """

    moment: Tensor
    seen: Tensor

    def __init__(self, bins: int = 32, memory: float = 0.9) -> None:
        super().__init__()
        self.memory = memory  # of the running mean of squares, a batch
        self.register_buffer("moment", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.float64))

    def density(self) -> Tensor:
        """The bins' density, mean 1, `[bins]`; uniform until every bin was seen."""
        if not bool((self.seen > 0).all()):
            return torch.ones_like(self.moment)
        root = self.moment.sqrt()
        return (1 - _FLOOR) * root / root.mean().clamp(min=1e-30) + _FLOOR

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """u `[B]` uniform -> (u with the density, 1 / density), both `[B]`. Monotone, so stratified stays stratified."""
        density = self.density().to(u)
        bins = len(density)
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / density.sum()])
        inside = torch.searchsorted(edges, u, right=True).sub(1).clamp(0, bins - 1)
        along = (u - edges[inside]) / (edges[inside + 1] - edges[inside])
        return ((inside + along) / bins).clamp(1e-12, 1 - 1e-12), 1 / density[inside]

    @torch.no_grad()
    def squares(self, u: Tensor, losses: Tensor) -> Tensor:
        """This rank's sums for `update`, `[2, bins]`: squared losses (before the division) and counts in each bin."""
        bins = len(self.moment)
        inside = (u * bins).long().clamp(0, bins - 1)
        sums = torch.zeros(2, bins, dtype=torch.float64, device=u.device)
        sums[0].index_add_(0, inside, losses.detach().double() ** 2)
        sums[1].index_add_(0, inside, torch.ones_like(u, dtype=torch.float64))
        return sums

    @torch.no_grad()
    def update(self, squares: Tensor) -> None:
        """Take in the sums of all ranks, `[2, bins]`."""
        total, count = squares.to(self.moment)
        keep = torch.where(self.seen > 0, self.memory, 0.0)
        fresh = keep * self.moment + (1 - keep) * total / count.clamp(min=1)
        self.moment.copy_(torch.where(count > 0, fresh, self.moment))
        self.seen += count
