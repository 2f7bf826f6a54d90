"""How much memory a computation takes: the tensors that are alive at once, counted while it runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_core.training import parallel

if TYPE_CHECKING:
    from diffusion_core.training.trainer import Trainer


class PeakMemory(TorchDispatchMode):
    """In this context, `peak` is the largest number of bytes at once of the tensors that were made in it.

    What an operation uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.sizes: dict[int, int] = {}  # bytes by the identity of a storage; 0 for those from outside
        self.references: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs or {})):
            self._see(value, new=False)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self._see(value, new=True)
        self.peak = max(self.peak, self.live)
        return result

    def _see(self, value: Any, new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = id(storage)
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes() if new else 0
        self.live += self.sizes[key]

        def gone(_: object) -> None:
            self.live -= self.sizes.pop(key)
            del self.references[key]

        self.references[key] = weakref.ref(storage, gone)


def of_micro_batch(trainer: Trainer) -> int:
    """Bytes of the activations and temporary tensors of forward and backward pass of a rank's micro-batch.

    Measured on one example and, for larger micro-batches, on two; more of them need as much again as the second one. The
    trainer does not change.
    """
    share = trainer.config.batch // trainer.world
    size = min(share, trainer.compute.microbatch or share)
    first = _peak(trainer, 1)
    if size == 1:
        return first
    return first + (size - 1) * max(0, _peak(trainer, 2) - first)


def _peak(trainer: Trainer, size: int) -> int:
    measured = PeakMemory()
    with parallel.no_gradient_sync(trainer.objective), measured:
        trainer.try_microbatch(size)
    trainer.zero_gradients()
    return measured.peak


def of_optimiser(trainer: Trainer) -> int:
    """Bytes that the optimiser allocates in the first step: two moments of each trained weight, in its own format."""
    if trainer.config.optimiser == "adamw_8bit":
        from diffusion_core.training.adamw_8bit import BLOCK, LEAST

        return sum(
            2 * p.numel() + 8 * -(-p.numel() // BLOCK) if p.numel() >= LEAST else 8 * p.numel()
            for p in trainer.parameters.values()
        )
    return sum(2 * p.numel() * p.element_size() for p in trainer.parameters.values())


def of_module(module: torch.nn.Module) -> int:
    """Bytes of the weights and buffers of a module."""
    return sum(value.numel() * value.element_size() for value in (*module.parameters(), *module.buffers()))
