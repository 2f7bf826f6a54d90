"""How a device computes: precision, compilation, memory use. These choices change results by rounding only."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Precision = Literal["fp32", "tf32", "bf16"]


@dataclass(frozen=True)
class Compute:
    """How a device computes.

    Precision fp32: all products in 32 bits. tf32: 10-bit mantissas inside the products (CUDA). bf16: products in bfloat16;
    weights, optimiser, losses and sums in fp32.
    """

    precision: Precision = "fp32"
    compile: bool = False  # run the network through torch.compile
    recompute: bool = False  # recompute each block's activations in the backward pass instead of keeping them
    microbatch: int | None = None  # images of a rank in memory at once; gradients of a larger share are accumulated
    sharded: bool = (
        False  # split weights, gradients and optimiser over the ranks (FSDP2) instead of repeating them (DDP)
    )


def prepare(net: nn.Module, compute: Compute, device: torch.device) -> str | None:
    """Set the network up in place. Returns a warning if it could not be compiled as asked, otherwise None."""
    if has_convolutions(net):
        net.to(memory_format=torch.channels_last)
    if device.type == "cuda":
        tf32 = compute.precision == "tf32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    if compute.recompute:
        for block in blocks(net):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if compute.compile:
        reason = compiler_error(device)
        if reason is not None:
            return f"The network runs without compilation: {reason}."
        net.compile()
    return None


def best_precision(device: torch.device) -> Precision:
    """bf16 where the device multiplies bfloat16 matrices in hardware, fp32 elsewhere."""
    return "bf16" if computes_bf16(device) else "fp32"


@functools.cache
def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: AVX512-BF16 or AMX on CPUs, native support on GPUs.

    Elsewhere bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a network: the modules in its outermost module lists."""
    for child in net.children():
        if isinstance(child, nn.ModuleList):
            for module in child:
                yield from blocks(module) if isinstance(module, nn.ModuleList) else iter([module])
        else:
            yield from blocks(child)


def compiler_error(device: torch.device) -> str | None:
    """Why torch.compile does not work on this machine, found by compiling a small function; None if it works."""

    def small(x: Tensor) -> Tensor:
        return (x + 1).sin()

    try:
        torch.compile(small)(torch.zeros(8, device=device))
    except torch._dynamo.exc.TorchDynamoException as error:  # a missing C++ or Triton compiler is one of these
        return str(error).strip().splitlines()[0].rstrip(".")
    return None


def autocast(compute: Compute, device: torch.device) -> AbstractContextManager[None]:
    """The context in which losses are computed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=compute.precision == "bf16")


def has_convolutions(net: nn.Module) -> bool:
    """Whether the network has 2-D convolutions, which run faster with channels last in memory."""
    return any(isinstance(module, nn.Conv2d) for module in net.modules())


def peak_flops(device: torch.device, compute: Compute, size: int | None = None, repeats: int = 8) -> float:
    """Floating-point operations per second of the fastest of `repeats` square matrix products: the attainable peak."""
    side = size or (8192 if device.type == "cuda" else 1024)
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, generator=torch.Generator().manual_seed(i)).to(device, dtype) for i in range(2))
    best = float("inf")
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def synchronise(device: torch.device) -> None:
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
