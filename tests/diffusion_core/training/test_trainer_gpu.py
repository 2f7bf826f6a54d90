"""Training on a GPU: the batches of the CPU, resume to the same bits, reduced precision, compilation, memory, NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from diffusion_core import presets
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.training import compute as computing
from diffusion_core.training import microbatch_size, monitoring
from diffusion_core.training.compute import Compute
from diffusion_core.training.trainer import TrainConfig, Trainer
from tests.support.project import PROJECT
from tests.support.ranks import CONFIG, make

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pictures(device: torch.device, compute: Compute | None = None, batch: int = 64, **settings) -> Trainer:
    """A small picture transformer on random pictures."""
    torch.manual_seed(0)
    x0 = 0.5 * torch.randn(256, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    recipe = presets.edm()
    net = PatchTransformer(16, 4, width=64, depth=3, heads=4, **settings)
    config = TrainConfig(images=10**9, batch=batch, learning_rate=1e-3, ema_halflife_images=1000)
    denoiser = recipe.denoiser(net).to(device)
    return Trainer(denoiser, recipe, config, lambda i: (x0[i], {}), len(x0), compute=compute)


def test_gpu_and_cpu_see_the_same_batches_and_losses():
    on_cpu, on_cuda = pictures(CPU), pictures(CUDA)
    for _ in range(5):
        one, two = on_cpu.step(), on_cuda.step()
        torch.testing.assert_close(one.level.s, two.level.s.cpu())
        assert two.loss == pytest.approx(one.loss, rel=2e-4)
    assert on_cuda.parameters["denoiser.net.patch_embed.weight"].is_cuda


@pytest.mark.parametrize("compute", [
    Compute(), Compute("tf32"), Compute("bf16"), Compute("bf16", microbatch=16, recompute=True), Compute("bf16", compile=True),
], ids=str)  # fmt: skip
def test_resume_on_a_gpu_is_bit_identical(compute: Compute):
    straight = pictures(CUDA, compute, dropout=0.1)
    losses = [straight.step().loss for _ in range(8)]
    first = pictures(CUDA, compute, dropout=0.1)
    before = [first.step().loss for _ in range(4)]
    tensors, info = first.state()
    stored = {name: value.cpu().clone() for name, value in tensors.items()}
    second = pictures(CUDA, compute, dropout=0.1)
    second.load_state(stored, json.loads(json.dumps(info)))
    assert before + [second.step().loss for _ in range(4)] == losses
    for name, value in second.state()[0].items():
        assert torch.equal(value, straight.state()[0][name]), name


@pytest.mark.parametrize("compute", [Compute("tf32"), Compute("bf16"), Compute("bf16", compile=True)], ids=str)
def test_reduced_precision_computes_nearly_the_same(compute: Compute):
    exact, rough = pictures(CUDA), pictures(CUDA, compute)
    for _ in range(20):
        one, two = exact.step().loss, rough.step().loss
    assert rough.compile_warning is None  # it was compiled if asked
    assert two == pytest.approx(one, rel=0.02)
    assert all(p.dtype == torch.float32 for p in rough.parameters.values())
    assert all(a.dtype == torch.float32 for a in rough.averages["ema"].weights.values())


def test_the_optimiser_is_fused():
    assert pictures(CUDA).optimizer.defaults["fused"] is True


class Convolutions(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)])

    def forward(self, x, c_noise, cond):
        for block in self.blocks:
            assert x.is_contiguous(memory_format=torch.channels_last)
            x = block(x).tanh() + 0 * c_noise[:, None, None, None]
        return x


def test_convolutions_run_with_channels_last():
    x0 = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    recipe = presets.edm(1.0)
    torch.manual_seed(0)
    denoiser = recipe.denoiser(Convolutions()).to(CUDA)
    trainer = Trainer(denoiser, recipe, TrainConfig(images=999, batch=32), lambda i: (x0[i], {}), 64)
    trainer.step()
    assert denoiser.net.blocks[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_largest_microbatch_stays_within_the_memory_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(microbatch_size, "RESERVE", 0.98)
    may = 0.02 * torch.cuda.get_device_properties(0).total_memory
    trainer = pictures(CUDA, batch=2**16)
    size = microbatch_size.largest_microbatch(trainer)
    assert 64 <= size < 2**16
    trainer.compute = replace(trainer.compute, microbatch=size)
    torch.cuda.reset_peak_memory_stats()
    trainer.gradient(0, 2 * size)
    assert 0.3 * may < torch.cuda.max_memory_allocated() < may


def test_peak_and_operations_give_a_utilisation_below_one():
    peak = computing.peak_flops(CUDA, Compute("bf16"))
    assert peak > 1e13
    trainer = pictures(CUDA, Compute("bf16"))
    # some versions of torch do not know the operations of attention on a CPU
    assert monitoring.flops_per_image(trainer) == pytest.approx(monitoring.flops_per_image(pictures(CPU)), rel=0.1)


@pytest.mark.parametrize(("backend", "world"), [("nccl", 1), ("gloo", 2)])
def test_ranks_on_one_gpu_train_like_one_process(backend: str, world: int, tmp_path: Path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}",
               "-m", "tests.support.ranks_gpu", backend]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(PROJECT),
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[6:])
    alone = make(Compute())
    losses = [alone.step().loss for _ in range(len(results["ddp"]))]
    assert set(results) == ({"ddp", "fsdp"} if backend == "nccl" else {"ddp"})
    for name, found in results.items():
        assert found == pytest.approx(losses, rel=1e-4), name
    assert CONFIG.batch % world == 0
