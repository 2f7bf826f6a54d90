"""Sequential offload: the weights of a published network wait in the memory of the CPU, outside of that of the GPU.

Each layer's weights are on the device only while it computes, and in a training with recomputed activations also while the
backward pass is in its block. accelerate moves them, as it does for diffusers' `enable_sequential_cpu_offload`.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from tasks.common.published import package
from tasks.foreign.model import ForeignModel


def offload(model: ForeignModel, recompute: bool = False) -> None:
    """Let the weights of a model that `model.load` kept on the CPU travel to its device layer by layer. Outputs stay the same.

    `recompute`: the network is trained with, and recomputes the activations of its blocks in the backward pass. Without, the
    backward pass would need all weights at once.
    """
    inner = model.net.inner
    if recompute:
        inner.enable_gradient_checkpointing(_recomputed)
    package("accelerate").cpu_offload(inner, execution_device=model.device)


def _recomputed(module: nn.Module, *inputs: Any) -> Any:
    """A block whose activations are recomputed to its end, so that its last layer gives its weights back, too."""
    return checkpoint(module, *inputs, use_reentrant=False, early_stop=False)


def waiting(module: nn.Module) -> int:
    """Bytes of the weights of a module that are not on its device now."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.is_meta)
