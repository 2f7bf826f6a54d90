"""Quality against the number of network evaluations for every solver, on the asymmetric mixture:
`python -m benchmarks.fewer_steps [plot.png]`.

The model is a small trained network, so that what is compared is what a user gets, not the exact denoiser.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from torch import Tensor

from benchmarks import mixture
from benchmarks.report import finish, table
from diffusion_core import objective, presets, walk
from diffusion_core.denoiser import Preconditioned
from diffusion_core.distill import Consistency
from diffusion_core.nets.mlp import MLP
from diffusion_core.recipe import Recipe
from diffusion_core.sample import Step, generate
from diffusion_core.step import ddim, dpmpp_2m, dpmpp_3m, heun, lms, redraw, unipc
from diffusion_core.train import TrainConfig, Trainer

COUNT, BATCH = 10_000, 512
SOLVERS: dict[str, tuple[Step, int]] = {  # and evaluations a step
    "ancestral": (ddim(1.0), 1),
    "DDIM": (ddim(), 1),
    "Heun": (heun(), 2),
    "DPM++ 2M": (dpmpp_2m(), 1),
    "DPM++ 2M SDE": (dpmpp_2m(1.0), 1),
    "DPM++ 3M SDE": (dpmpp_3m(1.0), 1),
    "LMS": (lms(), 1),
    "UniPC 2": (unipc(2), 1),
    "UniPC 3": (unipc(3), 1),
}
EVALUATIONS = (4, 8, 12, 20, 40, 80)
LOW, HIGH = 0.005, 20.0  # of the walks: data of size 0.5 need no more


def train(recipe: Recipe, steps: int, net: MLP) -> Preconditioned:
    """The averaged model after this many steps."""
    config = TrainConfig(
        images=steps * BATCH, batch=BATCH, learning_rate=2e-3, warmup_images=50 * BATCH, ema_halflife_images=60 * BATCH
    )
    trainer = Trainer(recipe.denoiser(net), recipe, config, lambda i: (mixture.draw(1, i), {}), 10**7)
    while not trainer.done:
        trainer.step()
    return trainer.averaged()


def plot(found: dict[str, dict[int, float]], floor: float, path: Path) -> None:
    """Sliced W2 against evaluations, one line a solver."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, values in found.items():
        axes.plot(list(values), list(values.values()), marker="o", label=name)
    axes.axhline(floor, color="black", linestyle=":", label="two sets of data")
    axes.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel="sliced Wasserstein distance to data")
    axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
    axes.minorticks_off()
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Train a model and a distilled one, print the table and the JSON line, draw the plot if a path is given."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = presets.edm(mixture.SD, low=LOW, high=HIGH)
    teacher = train(recipe, 1200, MLP(2, width=128, depth=3))
    goal, other = (mixture.draw(seed, torch.arange(COUNT)) for seed in (99, 98))
    floor = mixture.sliced_w2(goal, other)

    def distance(model: Preconditioned, steps: list, step: Step) -> float:
        samples: Tensor = generate(model, steps, step, (2,), 0, torch.arange(COUNT))
        return mixture.sliced_w2(samples, goal)

    found: dict[str, dict[int, float]] = {}
    for name, (step, cost) in SOLVERS.items():
        found[name] = {}
        for n in EVALUATIONS:
            # Heun's last step costs one evaluation: n evaluations are (n + 1) / 2 steps.
            found[name][n] = distance(teacher, recipe.walk(n if cost == 1 else (n + 1) // 2), step)
    chain = presets.ddpm(mixture.SD)
    reference = distance(teacher, chain.walk(1000), ddim(1.0))

    net = MLP(2, width=128, depth=3)
    student = recipe.denoiser(net)
    net.load_state_dict(teacher.net.state_dict())
    fine = recipe.walk(24)
    distilled = recipe.replace(
        loss=Consistency(teacher, student, fine),
        density=objective.among(fine[:-2]),
        weight=objective.unit(recipe.target),
    )
    student = train(distilled, 1500, net)
    few = walk.karras(4, 0.1, HIGH)
    found["consistency"] = {n: distance(student, [*few[: 4 : 4 // n], few[-1]], redraw) for n in (1, 2, 4)}

    rows = [("solver", *(f"{n}" for n in (1, 2, *EVALUATIONS)))]
    for name, values in found.items():
        rows.append((name, *(f"{values[n]:.4f}" if n in values else "" for n in (1, 2, *EVALUATIONS))))
    print(table(rows))
    print(f"1000-step DDPM {reference:.4f}, two sets of data {floor:.4f}")
    if len(sys.argv) > 1:
        plot(found, floor, Path(sys.argv[1]))
    default = min(value for n, value in found["Heun"].items() if n <= 20)
    within = 0.02 * mixture.SD  # 2% of the data's size: both distances are near the floor, where a ratio is noise
    goals = {
        "Heun within 2% (of the data's size) of 1000-step DDPM in at most 20 evaluations": default - reference
        <= within,
        "the distilled model in at most 4": min(found["consistency"].values()) - reference <= within,
    }
    return finish("fewer_steps", {"ddpm_1000": reference, "floor": floor, "sliced_w2": found}, goals)


if __name__ == "__main__":
    sys.exit(main())
