"""Several processes as one: who am I, gradients summed over ranks (DDP), weights split over ranks (FSDP2), sums, broadcasts.

A tensor that is split over the ranks is a DTensor. `whole` and `copy_full` go between the two, so that a state that is
stored does not know on how many ranks, or how, it was computed. What is only needed for splitting is imported only then:
it takes longer to import than the rest of torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from diffusion_core.training.compute import blocks


def ranks() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) outside torch.distributed."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def parallelise(module: nn.Module, device: torch.device, sharded: bool) -> nn.Module:
    """The module as one of all ranks, to be called in place of it; gradients are then means over the ranks.

    Weights become those of rank 0. Sharded: each block, and then the rest, is a unit of FSDP2 (Zhao et al. 2023, arXiv
    2304.11277), and the module's parameters become DTensors in place. Otherwise DDP (Li et al. 2020, arXiv 2006.15704).
    """
    _, world = ranks()
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for tensor in [*module.parameters(), *module.buffers()]:
            distributed.broadcast(tensor.detach(), 0)
        mesh = init_device_mesh(device.type, (world,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch give `broadcast_buffers` another name
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def no_gradient_sync(module: nn.Module) -> AbstractContextManager[Any]:
    """A context in which gradients are added up on each rank without being sent: all micro-batches but the last."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2's
        return _Quiet(module)
    return nullcontext()


class _Quiet:
    def __init__(self, module: Any) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.module.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self.module.set_requires_gradient_sync(True)


def zero_of_all(module: nn.Module) -> Tensor:
    """Zero, with a gradient of zero for every parameter that is whole at this moment of the forward pass.

    Added to the loss it gives a gradient to a part that this rank's batch does not use and another's does; without one DDP
    and FSDP wait for it for ever.
    """
    return torch.stack([p.sum() for p in module.parameters() if not is_sharded(p)]).sum() * 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over the ranks, in place."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value


def all_gather(value: Any) -> list[Any]:
    """A JSON-able value of every rank, on every rank."""
    if not distributed.is_initialized():
        return [value]
    out: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(out, value)
    return out


def broadcast(value: Any) -> Any:
    """Rank 0's JSON-able value, on every rank."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]


def broadcast_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Rank 0's tensors on every rank, so that only its machine needs the file they were read from."""
    if not distributed.is_initialized():
        return dict(tensors)
    about = broadcast({name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()})
    out = {}
    for name, (shape, dtype) in about.items():
        here = (
            tensors[name].to(device)
            if name in tensors
            else torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        )
        distributed.broadcast(here, 0)
        out[name] = here
    return out


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank has a piece of the tensor only."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor in one piece; every rank must call it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's piece."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def copy_full(own: Tensor, value: Tensor) -> None:
    """Fill `own`, which may be split over the ranks, with a whole tensor."""
    if is_sharded(own):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(own, DTensor)
        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    own.copy_(value)
