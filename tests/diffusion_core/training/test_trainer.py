"""The training loop: resume, divergence, monitoring, memory, and that it reaches the irreducible loss."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_core import losses as objective
from diffusion_core import presets, rng
from diffusion_core.extras import closed_form
from diffusion_core.nets.mlp import MLP
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.training import microbatch_size, monitoring
from diffusion_core.training.compute import Compute
from diffusion_core.training.ema import Average, halflife
from diffusion_core.training.trainer import Diverged, TrainConfig, Trainer, evaluate
from tests.support.project import PROJECT

POINTS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
CONFIG = TrainConfig(images=10_000, batch=32, warmup_images=100, ema_halflife_images=200, condition_dropout=0.2, seed=3)


def data(indices):
    return POINTS[indices], {"vec:sign": (POINTS[indices, :1] > 0).float()}


def make(config=CONFIG, source=data, dropout=0.1, recipe=None, compute=None):
    torch.manual_seed(0)
    recipe = recipe or presets.edm(1.0)
    net = MLP(3, width=16, depth=2, conds={"vec:sign": 1}, dropout=dropout)
    return Trainer(recipe.denoiser(net), recipe, config, source, len(POINTS), compute=compute)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_resume_is_bit_identical(tmp_path, optimiser):
    """2k steps in one go, against k steps, save to files, make fresh objects, load, and k steps."""
    k = 7
    straight = make(replace(CONFIG, optimiser=optimiser))
    losses = [straight.step().loss for _ in range(2 * k)]

    first = make(replace(CONFIG, optimiser=optimiser))
    before = [first.step().loss for _ in range(k)]
    tensors, info = first.state()
    save_file({name: value.contiguous() for name, value in tensors.items()}, tmp_path / "state.safetensors")
    (tmp_path / "state.json").write_text(json.dumps(info))

    second = make(replace(CONFIG, optimiser=optimiser))
    torch.manual_seed(99)  # other code may draw random numbers
    second.load_state(load_file(tmp_path / "state.safetensors"), json.loads((tmp_path / "state.json").read_text()))
    after = [second.step().loss for _ in range(k)]

    assert before + after == losses
    end, other = straight.state(), second.state()
    assert end[1] == other[1]
    assert end[0].keys() == other[0].keys()
    assert any(name.startswith("ema/") for name in end[0]) and any(name.startswith("optimiser.") for name in end[0])
    for name, value in end[0].items():
        assert torch.equal(value, other[0][name]), name


def test_a_state_of_another_run_is_refused():
    tensors, info = make().state()
    with pytest.raises(
        ValueError, match=r"another training run: batch 32 instead of 64, condition_dropout 0\.2 instead of 0\.0, "
    ):
        make(TrainConfig(images=10_000, batch=64)).load_state(tensors, info)


def test_torch_s_global_generator_does_not_matter():
    one, two = make(), make()
    for trainer in (one, two):
        torch.manual_seed(id(trainer) % 1000)
        trainer.step()
        torch.rand(5)
    assert one.step().loss == two.step().loss


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


def test_average_has_its_halflife_for_every_batch_size():
    for batch in (10, 100):
        average = Average({"w": torch.zeros(1, dtype=torch.float64)}, halflife(1000, warmup=1e9))
        for nimg in range(batch, 3000 + 1, batch):
            average.update({"w": torch.ones(1, dtype=torch.float64)}, nimg, batch)
        assert float(average.weights["w"]) == pytest.approx(1 - 0.5**3)
    start = Average({"w": torch.full((1,), 5.0)}, halflife(1000, warmup=0.05))
    start.update({"w": torch.ones(1)}, 100, 100)
    assert float(start.weights["w"]) == pytest.approx(1, abs=1e-5)  # the initial weights are forgotten at once


def test_averaged_denoiser_has_the_averages_and_does_not_change_the_weights():
    trainer = make()
    for _ in range(3):
        trainer.step()
    averaged = trainer.averaged()
    for name, value in averaged.named_parameters():
        assert torch.equal(value, trainer.averages["ema"].weights[f"denoiser.{name}"])
    current = dict(trainer.denoiser.named_parameters())
    assert any(not torch.equal(value, current[name]) for name, value in averaged.named_parameters())


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
    got = evaluate(closed_form.gaussian(torch.zeros(3).double(), cov), x0, {}, levels, batch=10_000)
    torch.testing.assert_close(got, closed_form.gaussian_loss(cov, levels), rtol=0.02, atol=0)


def test_training_reaches_the_irreducible_loss():
    """Normal data, every example new: the loss at each level approaches its closed form."""
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
    best = evaluate(closed_form.gaussian(torch.zeros(3), cov), x0, {}, levels)
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


def test_micro_batches_change_only_rounding():
    whole, pieces = make(dropout=0.0), make(dropout=0.0, compute=Compute(microbatch=5))
    for _ in range(5):
        one, two = whole.step(), pieces.step()
        torch.testing.assert_close(one.losses, two.losses, rtol=1e-4, atol=1e-6)
        assert torch.equal(one.level.s, two.level.s)
    assert [len(part) for part in pieces.upcoming()][:8] == [5, 5, 5, 5, 5, 5, 2, 5]


def test_upcoming_lists_the_indices_that_steps_request():
    trainer = make(TrainConfig(images=300, batch=32, batch_growth=((64, 48),)), compute=Compute(microbatch=20))
    trainer.step()
    expected, seen = [part.tolist() for part in trainer.upcoming()], []
    source = trainer.data
    trainer.data = lambda indices: (seen.append(indices.tolist()), source(indices))[1]
    while not trainer.done:
        trainer.step()
    assert seen == expected


def test_recomputing_activations_changes_nothing():
    kept, again = make(), make(compute=Compute(recompute=True))
    assert [kept.step().loss for _ in range(3)] == [again.step().loss for _ in range(3)]
    assert torch.equal(
        kept.state()[0]["weights/denoiser.net.first.weight"], again.state()[0]["weights/denoiser.net.first.weight"]
    )
    assert [p.shape for p in again.averaged().parameters()] == [p.shape for p in kept.averaged().parameters()]


def test_bf16_only_rounds_products():
    exact, rough = make(), make(compute=Compute("bf16"))
    losses = [(exact.step().loss, rough.step().loss) for _ in range(5)]
    assert losses[0][0] == losses[0][1]  # the network begins as zero
    assert all(one != two and two == pytest.approx(one, rel=0.05) for one, two in losses[1:])
    assert all(value.dtype == torch.float32 for name, value in rough.state()[0].items())


def test_a_warm_start_copies_the_weights_and_refuses_other_networks():
    trained, fresh = make(), make()
    for _ in range(3):
        trained.step()
    weights = dict(trained.averaged().named_parameters())
    fresh.warm_start(weights)
    for twin in (fresh.averaged(), fresh.denoiser):
        assert all(torch.equal(value, weights[name]) for name, value in twin.named_parameters())
    with pytest.raises(ValueError, match=r"other weights: \['net.first.bias'\]"):
        fresh.warm_start({name: value for name, value in weights.items() if name != "net.first.bias"})
    with pytest.raises(ValueError, match=r"net.first.bias is \[2\] instead of \[16\]"):
        fresh.warm_start(weights | {"net.first.bias": torch.zeros(2)})


def test_noise_scale_agrees_with_gradients_of_single_images():
    """At fixed weights the expectation over many batches is known: |mean gradient|^2 and the trace of the covariance."""
    torch.manual_seed(0)
    net = MLP(3, width=8, depth=1)
    torch.nn.init.normal_(net.last.weight, std=0.3)  # at zero no gradient reaches the rest
    recipe = presets.edm(1.0).replace(draw=objective.iid)
    trainer = Trainer(
        recipe.denoiser(net), recipe, TrainConfig(images=10**9, batch=64, seed=1), lambda i: (POINTS[i], {}), 50
    )
    found = []
    for nimg in range(0, 64 * 100, 64):
        trainer.nimg = nimg
        found.append(monitoring.noise_scale(trainer))
    singles = []
    for nimg in range(1500):
        trainer.zero_gradients()
        trainer.gradient(10**6 + nimg, 1)
        singles.append(torch.cat([p.grad.flatten() for p in trainer.parameters.values()]))
    gradients = torch.stack(singles).double()
    noise = float(gradients.var(0).sum())
    signal = float(gradients.mean(0).square().sum()) - noise / len(gradients)
    assert sum(f.noise for f in found) / len(found) == pytest.approx(noise, rel=0.2)
    assert sum(f.signal for f in found) / len(found) == pytest.approx(signal, rel=0.4)


def test_monitoring_does_not_change_the_training():
    monitored, plain = make(), make()
    for _ in range(3):
        monitoring.noise_scale(monitored)
        monitoring.flops_per_image(monitored)
        assert monitored.step().loss == plain.step().loss


def test_operations_are_counted():
    """Two operations per weight and image forward, and twice that backward; the first layer's input needs no gradient."""
    net = torch.nn.Linear(64, 32, bias=False)

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([net, torch.nn.Linear(32, 64, bias=False)])

        def forward(self, x, c_noise, cond):
            return self.blocks[1](self.blocks[0](x))

    recipe = presets.edm(1.0)
    x0 = torch.randn(10, 64)
    trainer = Trainer(recipe.denoiser(Wrapped()), recipe, TrainConfig(images=99, batch=4), lambda i: (x0[i], {}), 10)
    assert monitoring.flops_per_image(trainer) == 2 * 64 * 32 * (3 + 2)


@pytest.mark.parametrize("capacity", [1, 3, 4, 17, 95, 96, 1000])
def test_largest_divisor_that_fits(capacity):
    tried = []
    found = microbatch_size.largest_divisor(lambda size: (tried.append(size), size <= capacity)[1], 96)
    assert found == max(size for size in range(1, 97) if 96 % size == 0 and size <= capacity)
    assert len(tried) <= 7
    with pytest.raises(MemoryError):
        microbatch_size.largest_divisor(lambda size: False, 96)


@pytest.mark.slow
def test_the_largest_microbatch_on_a_cpu_whose_memory_is_limited():
    """A network with large activations, in a process that may use 1 GiB more than at the start."""
    code = (
        "import resource, torch\n"
        "from diffusion_core import presets\n"
        "from diffusion_core.nets.mlp import MLP\n"
        "from diffusion_core.training.microbatch_size import largest_microbatch\n"
        "from diffusion_core.training.trainer import TrainConfig, Trainer\n"
        "torch.set_num_threads(1)\n"
        "x0, recipe = torch.randn(64, 1000), presets.edm(1.0)\n"
        "config = TrainConfig(images=10**9, batch=2**15)\n"
        "trainer = Trainer(recipe.denoiser(MLP(1000, width=16, depth=1)), recipe, config, lambda i: (x0[i % 64], {}), 10**6)\n"
        "trainer.gradient(0, 8)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "print(largest_microbatch(trainer))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 2**8 <= int(done.stdout) < 2**15


@pytest.mark.slow
def test_without_a_compiler_the_network_runs_uncompiled_with_a_warning(tmp_path):
    """In a process that finds no C++ compiler and no compilation cache."""
    code = (
        "from diffusion_core.training.compute import Compute\n"
        "from tests.support.ranks import make\n"
        "plain, asked = make(Compute()), make(Compute(compile=True))\n"
        "print(asked.compile_warning)\n"
        "assert asked.step().loss == plain.step().loss and plain.compile_warning is None\n"
    )
    environment = {
        **os.environ,
        "CXX": "/nowhere/c++",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    environment["PYTHONPATH"] = str(PROJECT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("The network runs without compilation: ")
