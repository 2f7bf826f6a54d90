"""Quality against the number of network evaluations for every solver: `python -m benchmarks.fewer_steps [--plot PNG]`.

On the asymmetric mixture by the sliced Wasserstein distance, on mannequin poses by the Frechet pose distance. The models are
small trained networks, so the comparison shows what a user gets, not the exact denoiser. All distances use the same number of
samples and the same data, so their sampling error is the same. About 40 minutes on two cores, 4 on a GPU, where
there is time for more samples (`--count 30000 --repeats 4`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import mixture
from benchmarks.report import finish, table
from benchmarks.subjects import DEVICE, HIGH, LOW, Subject, mannequin_poses, mixture_subject, poses_subject, train
from diffusion_core import losses, presets
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.nets.mlp import MLP
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import Step, generate
from diffusion_core.sampling.solvers import consistency_step, ddim, dpmpp_2m, dpmpp_3m, heun, lms, unipc
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.training.distillation import Consistency, direct

SOLVERS: dict[str, tuple[Step, int]] = {  # and evaluations a step
    "ancestral": (ddim(1.0), 1),
    "DDIM": (ddim(), 1),
    "Heun": (heun(), 2),
    "LMS": (lms(), 1),
    "DPM++ 2M": (dpmpp_2m(), 1),
    "DPM++ 3M": (dpmpp_3m(), 1),
    "DPM++ 2M SDE": (dpmpp_2m(1.0), 1),
    "DPM++ 3M SDE": (dpmpp_3m(1.0), 1),
    "UniPC 2": (unipc(2), 1),
    "UniPC 3": (unipc(3), 1),
}
DEFAULT = "UniPC 2"
EVALUATIONS = (4, 8, 12, 20, 40)
FEW, SUBSTEPS = 4, 8  # steps of the distilled model, and of its teacher for each
POSES = 6000


class Result(NamedTuple):
    """Distances of one subject, the mean over repeats; `error` is the standard error of that mean."""

    solvers: dict[str, dict[int, float]]  # by evaluations
    ddpm: float
    error: float
    two_sets: float


def distance(
    subject: Subject, model: Denoiser, steps: Timesteps, step: Step, count: int, repeats: int
) -> tuple[float, float]:
    """Mean and standard error of the distance over repeats, which differ by their seed."""
    found = []
    for seed in range(repeats):
        samples = generate(model, steps, step, (subject.d,), seed, torch.arange(count, device=DEVICE))
        found.append(subject.distance(samples))
    values = torch.tensor(found, dtype=torch.float64)
    return float(values.mean()), float(values.std() / repeats**0.5) if repeats > 1 else 0.0


def distil_directly(subject: Subject, teacher: Preconditioned, steps: int) -> tuple[Preconditioned, Timesteps]:
    """A model that samples in FEW steps of DDIM, and its timesteps."""
    fine = subject.recipe.timesteps(FEW * SUBSTEPS)
    few = fine[::SUBSTEPS]
    recipe = subject.recipe.replace(loss=direct(teacher, fine, SUBSTEPS), density=losses.one_of(few[:-1]))
    return train(subject, recipe, _as(subject, teacher), steps, rate=1e-3), few


def distil_consistently(subject: Subject, teacher: Preconditioned, steps: int) -> tuple[Preconditioned, Timesteps]:
    """A consistency model, and the timesteps on which it samples with fresh noise in FEW steps."""
    fine = subject.recipe.timesteps(24)
    net = _as(subject, teacher)
    recipe = subject.recipe.replace(
        loss=Consistency(teacher, subject.recipe.denoiser(net), fine), density=losses.one_of(fine[:-2])
    )
    return train(subject, recipe, net, steps, rate=1e-3), timesteps.karras(FEW, 4 * LOW, HIGH)


def _as(subject: Subject, teacher: Preconditioned) -> MLP:
    net = subject.net()
    net.load_state_dict(teacher.net.state_dict())
    return net


def compare(subject: Subject, two_sets: float, count: int, repeats: int, steps: tuple[int, int, int]) -> Result:
    """Train the model, a consistency and a directly distilled one (this many steps each), and run every solver."""
    torch.manual_seed(0)
    teacher = train(subject, subject.recipe, subject.net(), steps[0])
    ddpm, error = distance(subject, teacher, presets.ddpm().timesteps(1000), ddim(1.0), count, repeats)
    print(f"{subject.name}, 1000-step DDPM: {ddpm}", file=sys.stderr, flush=True)
    found: dict[str, dict[int, float]] = {}
    for name, (step, cost) in SOLVERS.items():
        found[name] = {}
        for n in EVALUATIONS:
            # Heun's last step costs one evaluation: n evaluations are n / 2 steps, and one left over.
            levels = subject.recipe.timesteps(n // cost if cost == 1 else (n + 1) // 2)
            found[name][n], _ = distance(subject, teacher, levels, step, count, repeats)
        print(f"{subject.name}, {name}: {found[name]}", file=sys.stderr, flush=True)
    students: dict[str, tuple[Preconditioned, Timesteps, Step]] = {
        "consistency": (*distil_consistently(subject, teacher, steps[1]), consistency_step),
        "direct": (*distil_directly(subject, teacher, steps[2]), ddim()),
    }
    for name, (student, few, step) in students.items():
        found[f"distilled, {name}"] = {FEW: distance(subject, student, few, step, count, repeats)[0]}
        print(f"{subject.name}, distilled, {name}: {found[f'distilled, {name}']}", file=sys.stderr, flush=True)
    return Result(found, ddpm, error, two_sets)


def plot(results: dict[str, tuple[Subject, Result]], path: Path) -> None:
    """Plot distance against evaluations, one line per solver, one panel per subject."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(results), figsize=(6 * len(results) + 2, 5), layout="constrained", squeeze=False
    )
    for axes, (subject, result) in zip(panels[0], results.values(), strict=True):
        for i, (name, values) in enumerate(result.solvers.items()):
            color, marker, size = f"C{i}", "o", 4
            if name.startswith("distilled"):
                color, marker, size = ("black", "*", 14) if "direct" in name else ("firebrick", "P", 10)
            axes.plot(
                list(values), list(values.values()), color=color, marker=marker, markersize=size, label=name,
                linewidth=2.5 if name == DEFAULT else 1.2, linestyle="--" if "SDE" in name or name == "ancestral" else "-",
            )  # fmt: skip
        axes.axhline(result.ddpm, color="black", linewidth=1, label="DDPM, 1000 evaluations")
        axes.axhline(result.two_sets, color="grey", linestyle=":", linewidth=1.5, label="data against data")
        axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=subject.label, title=subject.name)
        axes.set_ylim(0.6 * result.two_sets, 30 * result.ddpm)
        axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axes.minorticks_off()
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> int:
    """Train the models and the distilled ones, print the tables and the JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fewer_steps", description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="samples of the mixture in a set; of poses a quarter")
    parser.add_argument("--repeats", type=int, default=2, help="sets of samples a distance is the mean over")
    parser.add_argument("--subjects", nargs="*", default=["mixture", "poses"], choices=["mixture", "poses"])
    parser.add_argument("--poses", type=Path, help="file (npy) that keeps the mannequin's poses between runs")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    options = parser.parse_args()

    results: dict[str, tuple[Subject, Result]] = {}
    if "mixture" in options.subjects:
        subject = mixture_subject(options.count)
        null = [subject.distance(mixture.draw(100 + i, torch.arange(options.count)).to(DEVICE)) for i in range(8)]
        results["mixture"] = (
            subject,
            compare(subject, sum(null) / 8, options.count, options.repeats, (3000, 3000, 1500)),
        )
    if "poses" in options.subjects:
        subject = poses_subject(mannequin_poses(POSES, options.poses))
        known = subject.data(torch.arange(subject.n))
        results["poses"] = (
            subject,
            compare(subject, subject.distance(known), options.count // 4, options.repeats, (6000, 3000, 1500)),
        )

    figures: dict[str, Any] = {}
    goals = {}
    for name, (subject, result) in results.items():
        rows: list[tuple[str, ...]] = [(f"{name}: {subject.label}", *(f"{n}" for n in EVALUATIONS))]
        for solver, values in result.solvers.items():
            rows.append((solver, *(f"{values[n]:.4g}" if n in values else "" for n in EVALUATIONS)))
        print(table(rows))
        print(f"1000-step DDPM {result.ddpm:.4g} +- {result.error:.2g}, data against data {result.two_sets:.4g}\n")
        figures[name] = result._asdict()
        for what, value in (
            (f"{DEFAULT} in 20 evaluations", result.solvers[DEFAULT][20]),
            (
                f"the better distilled model in {FEW}",
                min(v[FEW] for k, v in result.solvers.items() if "distilled" in k),
            ),
        ):
            figures[name][f"{what}, over 1000-step DDPM"] = value / result.ddpm
            goals[f"{name}: {what} at most 2% above 1000-step DDPM"] = value <= 1.02 * result.ddpm
    if options.plot:
        plot(results, options.plot)
    return finish("fewer_steps", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
