"""The order of examples: the i-th image of a run is permutation(seed, i // n)[i % n], a pure function of i.

So the order is the same for any number of ranks, and a run that restarts at image i continues as if it had not stopped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from diffusion_core import rng

LARGE = 1 << 20  # examples: of more than these the order is not kept in memory but computed place by place
ROUNDS = 8


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """A random order of 0 ... n - 1 for one pass over the data, `[n]` int64."""
    return torch.argsort(rng.bits((seed, epoch), torch.arange(n), 1)[:, 0], stable=True)


def _places(seed: int, epoch: int, position: Tensor, n: int) -> Tensor:
    """A random order of 0 ... n - 1 at these positions `[B]`, int64 `[B]`, in memory that does not depend on n.

    A Feistel network permutes 0 ... 4^k - 1, the smallest such range that holds n numbers. A number that it leads out of
    0 ... n - 1 is led on until it is back inside, which keeps the map one-to-one (cycle walking; Black & Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half = ((n - 1).bit_length() + 1) // 2
    mask = (1 << half) - 1

    def permuted(x: Tensor) -> Tensor:
        left, right = x >> half, x & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (rng.bits((seed, epoch, number), right, 1)[:, 0] & mask)
        return left << half | right

    out = permuted(position)
    while (outside := out >= n).any():
        out[outside] = permuted(out[outside])
    return out


def _shown(seed: int, epoch: int, position: Tensor, n: int) -> Tensor:
    return permutation(seed, epoch, n)[position] if n <= LARGE else _places(seed, epoch, position, n)


def index(seed: int, i: int, n: int) -> int:
    """The example shown as the i-th image of the run."""
    return int(_shown(seed, i // n, torch.tensor([i % n]), n))


def indices(seed: int, start: int, count: int, n: int) -> Tensor:
    """The examples shown as images start ... start + count - 1, `[count]` int64."""
    position = torch.arange(start, start + count)
    epochs = range(start // n, (start + count - 1) // n + 1)
    out = torch.empty(count, dtype=torch.int64)
    for epoch in epochs:
        inside = position.div(n, rounding_mode="floor") == epoch
        out[inside] = _shown(seed, epoch, position[inside] % n, n)
    return out
