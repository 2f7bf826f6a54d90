"""The largest micro-batch that fits into the device's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from diffusion_core.training import parallel

if TYPE_CHECKING:
    from diffusion_core.training.trainer import Trainer

RESERVE = 0.1  # of a GPU's memory is left alone: between steps it gets fragmented


def largest_divisor(fits: Callable[[int], bool], most: int) -> int:
    """The largest divisor of `most` that fits; tried from the smallest up, twice as far each time, then in between.

    What fits must fit in smaller sizes too. Raises MemoryError if not even 1 fits.
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
    """Images of a rank's share of the first batch that fit at once beside weights, averages and optimiser, on every rank.

    Forward and backward pass are run at each size tried; nothing of the trainer changes. Raises ValueError where weights are
    split over ranks: a rank that runs out of memory would leave the others waiting.
    """
    if trainer.compute.sharded:
        raise ValueError("the largest micro-batch cannot be searched with weights split over ranks: give its size")

    def fits(size: int) -> bool:
        room = []
        try:
            if not trainer.optimizer.state:  # its moments come with the first step
                room = [torch.empty_like(p) for p in trainer.parameters.values() for _ in range(2)]
            with parallel.no_gradient_sync(trainer.objective):
                trainer.try_microbatch(size)
            failed = 0.0
        except torch.OutOfMemoryError:
            failed = 1.0
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # the only sign that a CPU gives
                raise
            failed = 1.0
        trainer.zero_gradients()
        room.clear()
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
