"""Train every network of `net_zoo` on two ranks, with replicated and with sharded weights, and print the outcomes as JSON.

Runs as a process of its own that imports torch once and forks the ranks: `python -m tests.support.net_ranks FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_core import presets, rng
from diffusion_core.conditioning import rows
from diffusion_core.training.compute import Compute
from diffusion_core.training.lr_schedule import TrainConfig
from diffusion_core.training.trainer import Trainer
from tests.support import net_zoo
from tests.support.ranks import run_ranks

EXAMPLES = 16
STEPS = 3
CONFIG = TrainConfig(images=10_000, batch=8, learning_rate=0.02, condition_dropout=0.2, seed=3)


def outcomes() -> dict[str, dict[str, Any]]:
    """For each way to share the work and each network: losses, and the root mean square of every tensor of the final state."""
    layouts = {"replicated": Compute(), "sharded": Compute(sharded=True)}
    return {
        layout: {name: _outcome(kind, compute) for name, kind in net_zoo.KINDS.items()}
        for layout, compute in layouts.items()
    }


def _outcome(kind: net_zoo.Kind, compute: Compute) -> dict[str, Any]:
    x0 = rng.normal(kind.shape, 5, torch.arange(EXAMPLES))
    cond = net_zoo.conditions(kind, EXAMPLES)

    def data(indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return x0[indices], rows(cond, indices)

    torch.manual_seed(0)
    recipe = presets.edm(1.0)
    trainer = Trainer(recipe.denoiser(kind.make()), recipe, CONFIG, data, EXAMPLES, compute=compute)
    losses = [trainer.step().loss for _ in range(STEPS)]
    tensors, _ = trainer.state()
    return {"losses": losses, "rms": {name: float(t.double().square().mean().sqrt()) for name, t in tensors.items()}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(run_ranks(Path(sys.argv[1]) / "ranks", 2, outcomes)))
