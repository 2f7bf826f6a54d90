"""Train the same small model on several numbers of ranks with DDP and FSDP, and print the outcomes as JSON.

Runs as a process of its own that imports torch once and forks the ranks: `python -m tests.support.ranks FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported before the fork, because each rank would need seconds for it
import torch.distributed.fsdp  # the same
from torch import Tensor, distributed

from diffusion_core import presets
from diffusion_core.nets.mlp import MLP
from diffusion_core.training import monitoring
from diffusion_core.training.compute import Compute
from diffusion_core.training.lr_schedule import TrainConfig
from diffusion_core.training.trainer import Diverged, Trainer

POINTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(
    images=10_000, batch=32, warmup_images=100, ema_halflife_images=200, condition_dropout=0.2, seed=3,
    batch_growth=((96, 64),),
)  # fmt: skip
MUON = replace(CONFIG, optimiser="muon", muon_learning_rate=0.01)
STEPS = 5


def make(
    compute: Compute,
    points: Tensor = POINTS,
    requested: list[list[int]] | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    config: TrainConfig = CONFIG,
) -> Trainer:
    """A trainer of a small network on 50 points; `requested` collects the indices that it asks for."""

    def data(indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if requested is not None:
            requested.append(indices.tolist())
        return points[indices], {"vec:sign": (points[indices, :1] > 0).float()}

    torch.manual_seed(0)
    recipe = presets.edm2(1.0)  # it also trains EDM2's loss uncertainty
    net = MLP(3, width=16, depth=2, conds={"vec:sign": 1})
    return Trainer(recipe.denoiser(net).to(device), recipe, config, data, len(points), compute=compute)


def outcome(compute: Compute, config: TrainConfig = CONFIG) -> dict[str, Any]:
    """What the tests compare: batches, losses, sums of weights and averages, and what happens at divergence and stop."""
    requested: list[list[int]] = []
    trainer = make(compute, requested=requested, config=config)
    losses, batches = [], []
    for _ in range(STEPS):
        requested.clear()
        losses.append(trainer.step().loss)
        batches.append([i for rank in _gathered(requested) for micro in rank for i in micro])
    first = trainer.state()
    weights = {name: value.double().sum().item() for name, value in first[0].items()}
    scale = monitoring.noise_scale(trainer)
    averaged = trainer.averaged()
    again = make(compute, config=config)
    again.load_state(*first)
    tensors, info = again.state()
    same = info == first[1] and all(torch.equal(value, tensors[name]) for name, value in first[0].items())
    follow = again.step().loss == trainer.step().loss
    stops = [_gathered(again.step().stop)]
    again.stop = again.rank == again.world - 1
    stops.append(_gathered(again.step().stop))
    broken = POINTS.clone()
    broken[17] = float("nan")
    planted = make(compute, broken, config=config)
    try:
        for _ in range(3):
            planted.step()
        named: list[int] = []
    except Diverged as error:
        named = error.examples
    return {
        "batches": batches, "losses": losses, "restored": same and follow, "named": named, "noise_scale": scale,
        "weights": weights, "stops": stops, "world": trainer.world,
        "averaged": sum(p.double().sum().item() for p in averaged.parameters()),
    }  # fmt: skip


def _gathered(value: Any) -> list[Any]:
    """The value of every rank."""
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, value)
    return parts


def _run_rank(folder: Path, rank: int, world: int, work: Callable[[], Any]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    result = work()
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()


def run_ranks(folder: Path, world: int, work: Callable[[], Any]) -> Any:
    """Do the same work on each of so many forked ranks, and return rank 0's result, which must be JSON-serialisable."""
    folder.mkdir()
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _run_rank(folder, rank, world, work)
                code = 0
            finally:
                if code:
                    traceback.print_exc()
                os._exit(code)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    assert not any(codes), codes
    return json.loads((folder / "result.json").read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    layouts: dict[str, tuple[int, Compute, TrainConfig]] = {
        "1": (1, Compute(), CONFIG),
        "2": (2, Compute(), CONFIG),
        "4": (4, Compute(), CONFIG),
        "2 accumulating": (2, Compute(microbatch=4), CONFIG),
        "2 sharded": (2, Compute(sharded=True), CONFIG),
        "4 sharded": (4, Compute(sharded=True, microbatch=4), CONFIG),
        "1 muon": (1, Compute(), MUON),
        "2 muon": (2, Compute(), MUON),
        "2 sharded muon": (2, Compute(sharded=True), MUON),
    }
    results = {
        name: run_ranks(root / name.replace(" ", "-"), world, partial(outcome, compute, config))
        for name, (world, compute, config) in layouts.items()
    }
    print(json.dumps(results))
