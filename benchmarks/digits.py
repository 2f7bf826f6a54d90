"""Memorization of 8x8 digits by diffusion models, against the number of examples and of steps: `python -m benchmarks.digits`.

The onset of memorization, in steps, grows in proportion to the number of examples; the gap between training and
validation loss at low noise rises before it; augmentation by shifts delays it, and does not leak into the samples if
the network is conditioned on the shift.

Each training runs in its own process, `--workers` at a time, on the GPU if there is one. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.report import finish, table
from diffusion_core import presets, rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.extras import closed_form
from diffusion_core.nets.mlp import MLP
from diffusion_core.recipe import Recipe
from diffusion_core.sampling.loop import generate
from diffusion_core.schedules import sigma_level
from diffusion_core.training import augmentation
from diffusion_core.training import data_scale as measure
from diffusion_core.training.trainer import TrainConfig, Trainer, Transform, evaluate

BATCH, EVERY, SAMPLES, HELD = 256, 100, 400, 360
SIGMAS = (0.1, 0.6, 2.0)
ONSET = 0.1  # share of copies at which memorization has set in
GAP = 1.5  # validation loss divided by training loss that counts as a gap
LONG = 2400  # steps of the runs on 200 examples, 1.5 times their onset


class Look(NamedTuple):
    """Measurements of a model after some steps."""

    step: int
    memorized: float  # share of samples that are copies
    gap: list[float]  # validation loss over training loss at each of SIGMAS


class Watched(NamedTuple):
    """A training run, measured every EVERY steps, and the edge ink of 1000 final samples (mean, standard error)."""

    looks: list[Look]
    ink: tuple[float, float]


def digits() -> Tensor:
    """All digits in a fixed random order, `[1797, 64]` float32 in -1 ... 1."""
    data = torch.from_numpy(load_digits().data).float() / 8 - 1
    return data[torch.argsort(rng.bits(0, torch.arange(len(data)), 1)[:, 0])]


def copied(samples: Tensor, train: Tensor) -> float:
    """Share of samples whose distance to the nearest example is below a third of that to the second nearest.

    Yoon et al. 2023 (ICML workshop on structured probabilistic inference); Gu et al. 2023 (arXiv 2310.02664).
    """
    near = torch.cdist(samples, train).topk(2, largest=False).values
    return float((near[:, 0] < near[:, 1] / 3).float().mean())


def edge_ink(pictures: Tensor) -> tuple[float, float]:
    """Mean ink (0 to 1) in the outermost columns and its standard error.

    Digits have almost none there; shifted digits have more.
    """
    each = (pictures.reshape(-1, 8, 8)[:, :, [0, 7]].double() + 1).mean((1, 2)) / 2
    return float(each.mean()), float(each.std()) / len(each) ** 0.5


def draw(denoiser: Denoiser, recipe: Recipe, cond: Callable[[int], Cond], count: int, device: str) -> Tensor:
    """Samples by 18 Heun steps, `[count, 64]` on the CPU."""
    ids = torch.arange(count, device=device)
    here = {key: value.to(device) for key, value in cond(count).items()}
    return generate(denoiser, recipe.timesteps(18), recipe.step, (64,), 1, ids, here).cpu()


def shifts(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
    """Half of the examples shifted by one pixel or none in each direction, with the shift as a condition."""
    u = rng.uniform((3,), seed, ids)
    chosen = augmentation.no_transform(len(ids))
    chosen[:, 4:6] = (u[:, :2] * 3).floor() - 1
    chosen[:, 4:6] *= (u[:, 2:] < 0.5) / 8
    moved, cond = augmentation.transform_pictures(x0.reshape(-1, 1, 8, 8), cond, chosen)
    return moved.flatten(1), cond


def untold(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
    """The same shifts without the condition. These must leak, otherwise the measure of leaks is blind."""
    return shifts(x0, cond, seed, ids)[0], cond


def recipe() -> Recipe:
    """EDM for data of the digits' size."""
    return presets.edm(measure.data_scale(digits()).sd)


def watch(n: int, steps: int, transform: Transform | None = None, until_onset: bool = False) -> Watched:
    """Train on the first n digits for at most this many steps, the last HELD digits held out."""
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pictures = digits()
    train, held = pictures[:n].to(device), pictures[-HELD:].to(device)
    told = transform is shifts

    def cond(count: int) -> Cond:  # of sampling and of evaluation: no shift
        return {"vec:augment": augmentation.no_transform(count, torch.device(device))} if told else {}

    torch.manual_seed(0)
    net = MLP(64, width=512, depth=4, conds={"vec:augment": augmentation.WIDTH} if told else {}).to(device)
    config = TrainConfig(
        images=steps * BATCH, batch=BATCH, learning_rate=1e-3, warmup_images=50 * BATCH, ema_halflife_images=20 * BATCH
    )
    method = recipe()
    trainer = Trainer(method.denoiser(net), method, config, lambda i: (pictures[i], {}), n, transform=transform)
    levels = sigma_level(torch.tensor(SIGMAS, dtype=torch.float64))
    looks: list[Look] = []
    while not trainer.done and not (until_onset and looks and looks[-1].memorized >= ONSET):
        for _ in range(EVERY):
            trainer.step()
        model = trainer.averaged()
        known, unknown = (evaluate(model, x, cond(len(x)), levels) for x in (train, held))
        memorized = copied(draw(model, method, cond, SAMPLES, device), pictures[:n])
        looks.append(Look(trainer.nimg // BATCH, memorized, (unknown / known).tolist()))
        name = "" if transform is None else f", {transform.__name__}"
        print(f"n = {n}{name}, step {looks[-1].step}: {memorized:.3f} copied", file=sys.stderr, flush=True)
    return Watched(looks, edge_ink(draw(trainer.averaged(), method, cond, 1000, device)))


def crossing(looks: list[Look], value: Callable[[Look], float], threshold: float) -> float:
    """Step at which a measured value first reaches a threshold, by linear interpolation; infinite if it never does."""
    before, at = 0, 0.0
    for look in looks:
        here = value(look)
        if here >= threshold:
            return before + (look.step - before) * (threshold - at) / (here - at)
        before, at = look.step, here
    return float("inf")


def controls(n: int) -> tuple[float, float]:
    """Share of copies among samples of the empirical denoiser of n digits, and among held-out digits."""
    pictures = digits()
    train = pictures[:n]
    samples = draw(closed_form.empirical(train.double()), recipe(), lambda count: {}, SAMPLES, "cpu")
    return copied(samples, train), copied(pictures[-HELD:], train)


def plot(runs: dict[str, Watched], sizes: list[int], path: Path) -> None:
    """Plot the share of copies against steps per example, and the gap against steps, one line per training set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for n in sizes:
        looks = runs[f"n={n}"].looks
        left.plot([look.step / n for look in looks], [look.memorized for look in looks], marker=".", label=f"n = {n}")
        right.plot([look.step for look in looks], [look.gap[0] for look in looks], marker=".", label=f"n = {n}")
    left.axhline(ONSET, color="black", linestyle=":", linewidth=1)
    right.axhline(GAP, color="black", linestyle=":", linewidth=1)
    left.set(xlabel="steps per example", ylabel="share of samples that are copies", title="onset goes with n")
    right.set(
        xlabel="steps",
        ylabel=f"validation / training loss, sigma {SIGMAS[0]}",
        yscale="log",
        title="the gap comes first",
    )
    left.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Train, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.digits", description=__doc__)
    parser.add_argument("--n", type=int, nargs="*", default=[50, 100, 200], help="sizes of the training set")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once, a core each")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()

    sizes: list[int] = sorted({*options.n, 200})
    jobs: dict[str, tuple[Any, ...]] = {
        "told shifts": (200, LONG, shifts), "untold shifts": (200, LONG, untold),
        # the run on 200 examples continues beyond its onset, for comparison with the shifted one
        **{f"n={n}": (n, LONG) if n == 200 else (n, 16 * n, None, True) for n in reversed(sizes)},
    }  # fmt: skip
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = {name: pool.submit(watch, *job) for name, job in jobs.items()}
        runs = {name: future.result() for name, future in futures.items()}

    figures: dict[str, Any] = {"edge_ink_real": edge_ink(digits())[0]}
    goals = {}
    rows: list[tuple[str, ...]] = [("examples", "onset, steps", "passes", f"gap {GAP}, steps", "copied by step")]
    onsets = {}
    for n in sizes:
        looks = runs[f"n={n}"].looks
        onsets[n] = onset = crossing(looks, lambda look: look.memorized, ONSET)
        gap = crossing(looks, lambda look: look.gap[0], GAP)
        goals[f"n={n}: the gap at sigma {SIGMAS[0]} reaches {GAP} before half the onset"] = gap < onset / 2
        figures[f"n={n}"] = {"onset_steps": onset, "gap_steps": gap, "looks": looks}
        shown = ", ".join(f"{look.step}: {look.memorized:.3f}" for look in looks[len(looks) % 4 :: 4][-5:])
        rows.append((str(n), f"{onset:.0f}", f"{onset * BATCH / n:.0f}", f"{gap:.0f}", shown))
    for n in (*sizes, len(digits()) - HELD):
        empirical, held_out = controls(n)
        figures[f"controls n={n}"] = {"empirical": empirical, "held_out": held_out}
        goals[f"n={n}: the empirical denoiser copies all, held-out digits are no copies"] = (empirical, held_out) == (
            1,
            0,
        )
    per_example = sorted(onsets[n] / n for n in sizes)
    middle = per_example[len(per_example) // 2]
    goals["onset proportional to the number of examples within 25%"] = all(
        abs(value / middle - 1) < 0.25 for value in per_example
    )
    print(table(rows))

    rows = [(f"200 examples, {LONG} steps", "copied", "edge ink")]
    for name in ("n=200", "told shifts", "untold shifts"):
        run = runs[name]
        figures[f"{name}, {LONG} steps"] = {"memorized": run.looks[-1].memorized, "edge_ink": run.ink}
        rows.append((name, f"{run.looks[-1].memorized:.3f}", f"{run.ink[0]:.4f} +- {run.ink[1]:.4f}"))
    print(table(rows))
    plain, told, other = (runs[name] for name in ("n=200", "told shifts", "untold shifts"))
    goals["shifts that are told: less than half the copies of plain training"] = (
        told.looks[-1].memorized < 0.5 * plain.looks[-1].memorized
    )
    goals["shifts that are told: edge ink at most 10% above plain training's"] = told.ink[0] < 1.1 * plain.ink[0]
    goals["shifts that are not told leak, so that a leak would be seen"] = other.ink[0] > 1.5 * plain.ink[0]
    if options.plot:
        plot(runs, sizes, options.plot)
    return finish("digits", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
