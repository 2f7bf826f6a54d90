"""The training loop: resume, ranks, divergence, and that it reaches the irreducible loss."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_core import exact, presets, rng
from diffusion_core.average import Average, halflife
from diffusion_core.level import Level, sigma_level
from diffusion_core.nets.mlp import MLP
from diffusion_core.train import Diverged, TrainConfig, Trainer, evaluate

POINTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(images=10_000, batch=32, warmup_images=100, ema_halflife_images=200, condition_dropout=0.2, seed=3)


def data(indices):
    return POINTS[indices], {"vec:sign": (POINTS[indices, :1] > 0).float()}


def make(config=CONFIG, source=data, dropout=0.1, recipe=None):
    torch.manual_seed(0)
    recipe = recipe or presets.edm(1.0)
    net = MLP(3, width=16, depth=2, conds={"vec:sign": 1}, dropout=dropout)
    return Trainer(recipe.denoiser(net), recipe, config, source, len(POINTS))


def test_resume_is_bit_identical(tmp_path):
    """2k steps in one go, and k steps, save to files, a new process's worth of fresh objects, load, k steps."""
    k = 7
    straight = make()
    losses = [straight.step().loss for _ in range(2 * k)]

    first = make()
    before = [first.step().loss for _ in range(k)]
    tensors, info = first.state()
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(info))

    second = make()
    torch.manual_seed(99)  # whatever else drew random numbers meanwhile
    second.load_state(load_file(tmp_path / "state.safetensors"), json.loads((tmp_path / "state.json").read_text()))
    after = [second.step().loss for _ in range(k)]

    assert before + after == losses
    end, other = straight.state(), second.state()
    assert end[1] == other[1]
    assert end[0].keys() == other[0].keys()
    assert any(name.startswith("ema/") for name in end[0]) and any(name.startswith("adamw.") for name in end[0])
    for name, value in end[0].items():
        assert torch.equal(value, other[0][name]), name


def test_a_state_of_another_run_is_refused():
    tensors, info = make().state()
    with pytest.raises(ValueError, match="another training run"):
        make(TrainConfig(images=10_000, batch=64)).load_state(tensors, info)


def test_accidental_randomness_does_not_enter():
    one, two = make(), make()
    for trainer in (one, two):
        torch.manual_seed(id(trainer) % 1000)
        trainer.step()
        torch.rand(5)
    assert one.step().loss == two.step().loss


RANKS = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
import test_core_train as here
dist.init_process_group("gloo")
trainer = here.make(dropout=0.0)
seen = []
source = trainer.data
trainer.data = lambda indices: (seen.append(indices.tolist()), source(indices))[1]
losses = [trainer.step().loss for _ in range(5)]
all_seen = [None] * dist.get_world_size()
dist.all_gather_object(all_seen, seen)
if dist.get_rank() == 0:
    batches = [sum((rank[i] for rank in all_seen), []) for i in range(5)]
    import json
    weights = {name: value.double().sum().item() for name, value in trainer.state()[0].items()}
    print("RESULT" + json.dumps({"losses": losses, "batches": batches, "weights": weights}))
dist.barrier()
dist.destroy_process_group()
"""


def run_ranks(tmp_path: Path, world: int) -> dict:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}",
         str(script), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))
    return json.loads(line.removeprefix("RESULT"))


def test_two_ranks_train_as_one(tmp_path):
    alone = make(dropout=0.0)
    seen = []
    alone.data = lambda indices: (seen.append(indices.tolist()), data(indices))[1]
    losses = [alone.step().loss for _ in range(5)]
    both = run_ranks(tmp_path, 2)
    assert both["batches"] == seen
    assert both["losses"] == pytest.approx(losses, rel=1e-5)
    for name, value in alone.state()[0].items():
        assert both["weights"][name] == pytest.approx(value.double().sum().item(), rel=1e-3, abs=1e-3), name


def test_divergence_names_the_examples():
    broken = POINTS.clone()
    broken[17] = float("nan")
    trainer = make(source=lambda i: (broken[i], data(i)[1]))
    with pytest.raises(Diverged, match=r"examples \[17\]"):
        for _ in range(4):
            trainer.step()
    assert all(value.isfinite().all() for value in trainer.parameters.values())


def test_augmentation_is_a_function_of_the_image_number():
    calls = []

    def transform(x0, cond, seed, ids):
        calls.append(ids.tolist())
        return -x0, {"vec:sign": 1 - cond["vec:sign"]}

    one, plain = make(), make()
    one.transform = transform
    mirrored = make(source=lambda i: (-POINTS[i], {"vec:sign": 1 - data(i)[1]["vec:sign"]}))
    for _ in range(2):
        losses = one.step().losses
        assert torch.equal(losses, mirrored.step().losses) and not torch.equal(losses, plain.step().losses)
    assert calls == [list(range(32)), list(range(32, 64))]


def test_learning_rate_warms_up_on_the_image_clock():
    trainer = make(TrainConfig(images=1000, batch=10, learning_rate=1.0, warmup_images=40))
    rates = []
    for nimg in range(0, 60, 10):
        trainer.nimg = nimg
        rates.append(trainer.learning_rate())
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]


def test_average_has_the_halflife_it_says_whatever_the_batch():
    for batch in (10, 100):
        average = Average({"w": torch.zeros(1, dtype=torch.float64)}, halflife(1000, warmup=1e9))
        for nimg in range(batch, 3000 + 1, batch):
            average.update({"w": torch.ones(1, dtype=torch.float64)}, nimg, batch)
        assert float(average.weights["w"]) == pytest.approx(1 - 0.5**3)
    start = Average({"w": torch.full((1,), 5.0)}, halflife(1000, warmup=0.05))
    start.update({"w": torch.ones(1)}, 100, 100)
    assert float(start.weights["w"]) == pytest.approx(1, abs=1e-5)  # the initial weights are forgotten at once


def test_averaged_denoiser_has_the_averages_and_leaves_the_weights():
    trainer = make()
    for _ in range(3):
        trainer.step()
    twin = trainer.averaged()
    for name, value in twin.named_parameters():
        assert torch.equal(value, trainer.averages["ema"].weights[f"denoiser.{name}"])
    moving = dict(trainer.denoiser.named_parameters())
    assert any(not torch.equal(value, moving[name]) for name, value in twin.named_parameters())


def test_evaluation_repeats_itself_and_does_not_depend_on_batches():
    trainer = make()
    levels = sigma_level(torch.tensor([0.1, 1.0, 10.0]).double())
    x0, cond = data(torch.arange(50))
    once = evaluate(trainer.averaged(), x0, cond, levels, seed=1)
    assert torch.equal(once, evaluate(trainer.averaged(), x0, cond, levels, seed=1))
    torch.testing.assert_close(once, evaluate(trainer.averaged(), x0, cond, levels, seed=1, batch=7))


def test_evaluation_of_the_exact_denoiser_is_the_irreducible_loss():
    cov = torch.diag(torch.tensor([1.0, 0.2, 0.05], dtype=torch.float64))
    levels = sigma_level(torch.tensor([0.1, 0.5, 2.0]).double())
    x0 = rng.normal((3,), 5, torch.arange(40_000)).double() @ cov.sqrt()
    got = evaluate(exact.gaussian(torch.zeros(3).double(), cov), x0, {}, levels, batch=10_000)
    torch.testing.assert_close(got, exact.gaussian_loss(cov, levels), rtol=0.02, atol=0)


def test_training_reaches_the_irreducible_loss():
    """Normal data, of which every draw is new: the loss at each level approaches its closed form."""
    cov = torch.diag(torch.tensor([1.0, 0.2, 0.05]))
    recipe = presets.edm(0.65)
    torch.manual_seed(0)
    trainer = Trainer(
        recipe.denoiser(MLP(3, width=64, depth=2)),
        recipe,
        TrainConfig(images=200_000, batch=256, learning_rate=3e-3, ema_halflife_images=20_000),
        lambda i: (rng.normal((3,), 11, i) @ cov.sqrt(), {}),
        1_000_000,
    )
    while not trainer.done:
        trainer.step()
    levels = sigma_level(torch.tensor([0.1, 0.3, 1.0, 3.0]).double())
    x0 = rng.normal((3,), 12, torch.arange(20_000)) @ cov.sqrt()
    best = evaluate(exact.gaussian(torch.zeros(3), cov), x0, {}, levels)
    excess = evaluate(trainer.averaged(), x0, {}, levels) / best - 1
    assert float(excess.min()) > -1e-3
    assert float(excess.max()) < 0.05, excess


def test_a_batch_must_divide_among_ranks(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match="does not divide among 3"):
        make()


def test_a_step_reports_levels_and_losses_of_its_examples():
    trainer = make()
    out = trainer.step()
    assert isinstance(out.level, Level) and out.level.a.shape == out.losses.shape == (32,)
    assert out.loss == pytest.approx(float(out.losses.mean()), rel=1e-5)
    assert math.isfinite(out.loss) and out.nimg == 32 == trainer.nimg
