"""The order of examples: the i-th image of a run is permutation(seed, i // n)[i % n], a pure function of i.

So the order is the same for any number of ranks, and a run that restarts at image i continues as if it had not stopped.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from diffusion_core import rng


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """A random order of 0 ... n - 1 for one pass over the data, `[n]` int64."""
    return torch.argsort(rng.bits((seed, epoch), torch.arange(n), 1)[:, 0], stable=True)


def index(seed: int, i: int, n: int) -> int:
    """The example shown as the i-th image of the run."""
    return int(permutation(seed, i // n, n)[i % n])


def indices(seed: int, start: int, count: int, n: int) -> Tensor:
    """The examples shown as images start ... start + count - 1, `[count]` int64."""
    position = torch.arange(start, start + count)
    epochs = range(start // n, (start + count - 1) // n + 1)
    out = torch.empty(count, dtype=torch.int64)
    for epoch in epochs:
        inside = position.div(n, rounding_mode="floor") == epoch
        out[inside] = permutation(seed, epoch, n)[position[inside] % n]
    return out
