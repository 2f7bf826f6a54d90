"""The memory that an adaptation is expected to take, told before its first step, and what it then took.

Expected is what the device or this process holds when everything is loaded (weights, gradients, averages, examples), the
optimiser's moments, and the larger of two: forward and backward pass of a micro-batch, and the decoding of one picture. Both
are measured beforehand, see `diffusion_core.training.memory`.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import torch

from diffusion_core.training import memory
from diffusion_core.training.memory import PeakMemory
from diffusion_core.training.trainer import Trainer
from tasks.foreign import offload
from tasks.foreign.model import ForeignModel

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")  # writing 5 into it makes Linux measure the peak anew


@dataclass(frozen=True)
class Estimate:
    """Bytes. `held`: by the device, or by this process with Python and its libraries, before the first step."""

    held: int
    network: int  # the published network and its autoencoder; part of `held`
    waiting: int  # weights of the published network that wait in the memory of the CPU; on a GPU no part of `held`
    change: int  # what is trained, with gradients and averages; part of `held`
    optimiser: int
    micro_batch: int
    decoding: int

    @property
    def peak(self) -> int:
        """What is expected to be used at once."""
        return self.held + self.optimiser + max(self.micro_batch, self.decoding)

    def sentence(self) -> str:
        """The parts in words."""
        return (
            f"{gigabytes(self.peak)} of memory are expected: {gigabytes(self.held)} are in use now, of which the published "
            f"network takes {gigabytes(self.network)} and the change with gradients and averages {gigabytes(self.change)}; "
            f"the optimiser will take {gigabytes(self.optimiser)}, the passes of a micro-batch {gigabytes(self.micro_batch)}, "
            f"and the decoding of a picture {gigabytes(self.decoding)}."
            + (f" {gigabytes(self.waiting)} of the network wait in the memory of the CPU." if self.waiting else "")
        )


def gigabytes(count: float) -> str:
    """A number of bytes in words."""
    return f"{count / 1e9:.2f} GB"


def estimate(trainer: Trainer, model: ForeignModel, size: int) -> Estimate:
    """The memory of a training with pictures of `size` pixels. Runs the passes of up to three examples; changes nothing."""
    weights = sum(p.numel() * p.element_size() for p in trainer.parameters.values())
    averages = sum(v.numel() * v.element_size() for a in trainer.averages.values() for v in a.weights.values())
    held = in_use(trainer.device)
    waiting = offload.waiting(model.net)
    latents = torch.zeros(1, *model.shape(size), device=trainer.device)
    decoding = PeakMemory()
    with torch.no_grad(), decoding:
        model.codec.decode(latents)
    return Estimate(
        held, memory.of_module(model.net) - waiting + memory.of_module(model.codec.net), waiting, 2 * weights + averages,
        memory.of_optimiser(trainer), memory.of_micro_batch(trainer), decoding.peak,
    )  # fmt: skip


def in_use(device: torch.device) -> int:
    """Bytes in use now: of the GPU by torch, or of the machine by this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status("VmRSS") or _largest()


def reset_peak(device: torch.device) -> None:
    """Begin to measure the peak anew, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")


def peak(device: torch.device) -> int:
    """The most bytes in use at once since `reset_peak`; of a machine without Linux, since this process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM") or _largest()


def _status(key: str) -> int | None:
    """A line of Linux's description of this process in bytes; None on other systems."""
    if not STATUS.exists():
        return None
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def _largest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
