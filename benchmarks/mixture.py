"""The asymmetric two-dimensional mixture that recipes are judged on, and the sliced Wasserstein distance."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core import exact, rng
from diffusion_core.denoiser import Denoiser

# Lopsided on purpose: on a symmetric ring the preconditioned target has no low-order correlation with the input, and learning
# stalls for reasons that have nothing to do with the method.
WEIGHTS = torch.tensor([0.3, 0.25, 0.2, 0.15, 0.1])
MEANS = torch.tensor([[-0.6, -0.2], [0.5, 0.5], [0.1, -0.7], [-0.3, 0.8], [0.9, -0.3]])
SDS = torch.tensor([0.08, 0.12, 0.05, 0.1, 0.15])
MEANS -= (WEIGHTS[:, None] * MEANS).sum(0)
SCALE = 0.5 / float(torch.sqrt((WEIGHTS * (SDS**2 + MEANS.square().mean(1))).sum()))
MEANS *= SCALE
SDS *= SCALE
SD = 0.5  # root mean square of the data, by construction


def draw(seed: rng.Seed, ids: Tensor) -> Tensor:
    """Points of the mixture, `[B, 2]` float32, point i a function of (seed, ids[i])."""
    chosen = torch.bucketize(rng.uniform((), rng.fold(seed, 0), ids), WEIGHTS.double().cumsum(0)).clamp(
        max=len(WEIGHTS) - 1
    )
    return MEANS[chosen] + SDS[chosen, None] * rng.normal((2,), rng.fold(seed, 1), ids)


def denoiser() -> Denoiser:
    """The exact denoiser."""
    return exact.mixture(WEIGHTS, MEANS, SDS)


def sliced_w2(one: Tensor, other: Tensor, directions: int = 64) -> float:
    """Root mean square over directions of the quadratic Wasserstein distance of the projections of `[N, d]` on `[N, d]`."""
    turn = rng.normal((one.shape[1],), 0, torch.arange(directions)).to(one)
    turn = turn / turn.norm(dim=1, keepdim=True)
    gap = (one @ turn.T).sort(0).values - (other @ turn.T).sort(0).values
    return float(gap.square().mean().sqrt())
