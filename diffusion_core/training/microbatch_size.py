"""The largest micro-batch that fits into the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from diffusion_core.training import parallel

if TYPE_CHECKING:
    from diffusion_core.training.trainer import Trainer

RESERVE = 0.1  # share of a GPU's memory that is left free, because memory fragments between steps


def largest_divisor(fits: Callable[[int], bool], most: int) -> int:
    """The largest divisor of `most` that fits: searched from the smallest up with doubling steps, then by bisection.

    If a size fits, every smaller one must fit too. Raises MemoryError if not even 1 fits.
    """
    divisors = [size for size in range(1, most + 1) if most % size == 0]
    low, high = -1, len(divisors)  # divisors[low] fits, divisors[high] does not
    probe = 0
    while high - low > 1:
        if fits(divisors[probe]):
            low = probe
        else:
            high = probe
        probe = min(2 * low + 2, len(divisors) - 1) if high == len(divisors) else (low + high) // 2
    if low < 0:
        raise MemoryError("not even one example fits into the device's memory")
    return divisors[low]


def largest_microbatch(trainer: Trainer) -> int:
    """How many images of a rank's share of the first batch fit into memory at once, on every rank.

    Runs forward and backward pass at each size tried; the trainer does not change. Raises ValueError with sharded weights:
    there, a rank that runs out of memory would leave the others waiting. Raises MemoryError if not even one image fits.
    """
    if trainer.compute.sharded:
        raise ValueError("the largest micro-batch cannot be searched for with sharded weights: give its size")

    def fits(size: int) -> bool:
        moments = []
        try:
            if not trainer.optimizer.state:  # the optimiser allocates its moments in the first step
                moments = [torch.empty_like(p) for p in trainer.parameters.values() for _ in range(2)]
            with parallel.no_gradient_sync(trainer.objective):
                trainer.try_microbatch(size)
            failed = 0.0
        except torch.OutOfMemoryError:
            failed = 1.0
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # torch has no error type for this on CPUs
                raise
            failed = 1.0
        trainer.zero_gradients()
        moments.clear()
        return float(parallel.all_reduce_sum(torch.tensor(failed, device=trainer.device))) == 0

    cuda = trainer.device.type == "cuda"
    if cuda:
        torch.cuda.set_per_process_memory_fraction(1 - RESERVE, trainer.device)
    try:
        return largest_divisor(fits, trainer.config.batch // trainer.world)
    finally:
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, trainer.device)
