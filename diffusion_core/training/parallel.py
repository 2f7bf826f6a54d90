"""Training on several ranks: replicated weights (DDP), sharded weights (FSDP2), sums, gathers and broadcasts.

A sharded tensor is a DTensor, of which each rank holds a shard. `full_tensor` and `copy_full` convert between sharded and full
tensors, so that a stored state does not depend on the number of ranks or on sharding. Modules that only sharding needs are
imported inside functions: they take longer to import than the rest of torch.
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
    """The module to call instead of `module` on every rank; gradients are then means over the ranks.

    All ranks start with the weights of rank 0. Sharded: FSDP2 (Zhao et al. 2023, arXiv 2304.11277) with one unit for each
    block and one for the rest; the module's parameters become DTensors in place. Otherwise DDP (Li et al. 2020, arXiv
    2006.15704).
    """
    _, world = ranks()
    if sharded:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        for parameter in module.parameters():
            parameter.data = parameter.data.contiguous()  # FSDP2 refuses weights with channels last in memory
        for tensor in [*module.parameters(), *module.buffers()]:
            distributed.broadcast(tensor.detach(), 0)
        mesh = init_device_mesh(device.type, (world,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    ids = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch rename `broadcast_buffers`
        return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)


def no_gradient_sync(module: nn.Module) -> AbstractContextManager[Any]:
    """A context in which each rank accumulates gradients without reducing them: for all micro-batches but the last."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    if hasattr(module, "set_requires_gradient_sync"):  # FSDP2's
        return _NoGradientSync(module)
    return nullcontext()


class _NoGradientSync:
    def __init__(self, module: Any) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.module.set_requires_gradient_sync(False)

    def __exit__(self, *_: object) -> None:
        self.module.set_requires_gradient_sync(True)


def zero_of_all(module: nn.Module) -> Tensor:
    """Zero, with a zero gradient for every parameter that is not sharded at this moment of the forward pass.

    Added to the loss it gives a gradient to parameters that this rank's batch does not use but another rank's does. Without
    one, DDP and FSDP would wait for it forever.
    """
    return torch.stack([p.sum() for p in module.parameters() if not is_sharded(p)]).sum() * 0


def all_reduce_sum(value: Tensor) -> Tensor:
    """Sum the tensor over the ranks in place, and return it."""
    if distributed.is_initialized():
        distributed.all_reduce(value)
    return value


def all_gather(value: Any) -> list[Any]:
    """A list of every rank's value, on every rank. The value must be JSON-serialisable."""
    if not distributed.is_initialized():
        return [value]
    out: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(out, value)
    return out


def all_gather_tensor(own: Tensor) -> Tensor:
    """The tensors of all ranks, which have one shape `[n, ...]`, as `[ranks * n, ...]`."""
    if not distributed.is_initialized():
        return own
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own.contiguous())
    return torch.cat(parts)


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank. The value must be JSON-serialisable."""
    if not distributed.is_initialized():
        return value
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]


def broadcast_tensors(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Rank 0's tensors, on every rank. Only rank 0's machine needs the file that they were read from."""
    if not distributed.is_initialized():
        return dict(tensors)
    headers = broadcast({name: (list(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors.items()})
    out = {}
    for name, (shape, dtype) in headers.items():
        if name in tensors:
            tensor = tensors[name].to(device)
        else:
            tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        distributed.broadcast(tensor, 0)
        out[name] = tensor
    return out


def is_sharded(tensor: Tensor) -> bool:
    """Whether each rank holds only a shard of the tensor."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor; every rank must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard, or the tensor itself if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def copy_full(own: Tensor, value: Tensor) -> None:
    """Copy a full tensor into `own`, which may be sharded."""
    own.copy_(shard_like(value, own))


def shard_like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor, the same on every rank, split over the ranks as `own` is; itself if `own` is whole."""
    if not is_sharded(own):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(own, DTensor)
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
