"""Train the small model of `ranks` on a GPU with DDP and FSDP, under torchrun: `ranks_gpu.py BACKEND`."""

from __future__ import annotations

import json
import sys

import torch
from torch import distributed

from diffusion_core.training.compute import Compute
from tests.support.ranks import STEPS, make

if __name__ == "__main__":
    torch.cuda.set_device(0)
    distributed.init_process_group(sys.argv[1])
    layouts = {"ddp": Compute(), "fsdp": Compute(sharded=True)}
    if sys.argv[1] == "gloo":
        del layouts["fsdp"]  # gloo cannot scatter tensors on a GPU
    losses = {}
    for name, compute in layouts.items():
        trainer = make(compute, device=torch.device("cuda", 0))
        losses[name] = [trainer.step().loss for _ in range(STEPS)]
        trainer.state()
    if distributed.get_rank() == 0:
        print("RESULT" + json.dumps(losses), flush=True)
    distributed.barrier()
    distributed.destroy_process_group()
