"""Order of convergence on Gaussian data, exactness on one-point data, and the mean and variance laws, for every solver:
`python -m benchmarks.convergence`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.report import finish, table
from diffusion_core import rng, schedules
from diffusion_core.conditioning import Cond
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import Step, sample
from diffusion_core.sampling.solvers import FLOW_ODE, ddim, dpmpp_2m, dpmpp_3m, heun, lms, unipc
from diffusion_core.schedules import Level

SOLVERS: dict[str, Step] = {
    "DDIM": ddim(),
    "ancestral": ddim(1.0),
    "Heun": heun(),
    "flow Heun": heun(FLOW_ODE),
    "DPM++ 2M": dpmpp_2m(),
    "DPM++ 2M SDE": dpmpp_2m(1.0),
    "DPM++ 3M": dpmpp_3m(),
    "DPM++ 3M SDE": dpmpp_3m(1.0),
    "LMS 2": lms(2),
    "LMS 4": lms(4),
    "UniPC 2": unipc(2),
    "UniPC 3": unipc(3),
}
ORDERS = {"DDIM": 1, "Heun": 2, "DPM++ 2M": 2}  # orders that are goals; the others are only reported


def problem() -> tuple[Tensor, Tensor]:
    """Mean and covariance of normal data in eight dimensions."""
    basis = torch.linalg.qr(rng.normal((8,), 0, torch.arange(8)).double()).Q
    return rng.normal((8,), 1, torch.arange(1)).double()[0], basis @ torch.diag(
        torch.linspace(0.05, 2, 8).double()
    ) @ basis.T


def endpoint_error(step: Step, n: int) -> float:
    """Mean distance from the exact flow after n steps on Karras' timesteps from sigma 80 to 0.002."""
    mean, cov = problem()
    values, basis = torch.linalg.eigh(cov)
    x = 80 * rng.normal((8,), 2, torch.arange(64)).double()
    steps = timesteps.karras(n + 1)[:-1]
    scale = torch.sqrt((values + steps[-1].sigma ** 2) / (values + steps[0].sigma ** 2))
    want = mean + ((x - mean) @ basis * scale) @ basis.T
    return float((sample(closed_form.gaussian(mean, cov), x, steps, step, iter(())) - want).norm(dim=1).mean())


def law_errors(step: Step, n: int = 12) -> tuple[float, float]:
    """Largest violation of the mean and the variance law at the visited levels of three lists of timesteps.

    The noises are basis vectors.
    """
    worst_mean = worst_variance = 0.0
    for steps in (
        timesteps.karras(n),
        timesteps.uniform(schedules.linear(), n),
        timesteps.churn(timesteps.karras(n), 4.0),
    ):
        axes = iter(torch.eye(100, dtype=torch.float64)[1:, None])
        x0 = torch.eye(100, dtype=torch.float64)[:1]
        visits: list[tuple[Level, Tensor]] = []
        record = partial(_record, visits)
        sample(partial(_always, x0), steps[0].corrupt(x0, next(axes)), steps, step, axes, constrain=record)
        for level, x in visits:
            worst_mean = max(worst_mean, abs(float(x[0, 0] - level.a)))
            worst_variance = max(worst_variance, abs(float(x[0, 1:].norm() - level.s)))
    return worst_mean, worst_variance


def _always(estimate: Tensor, x: Tensor, level: Level, cond: Cond) -> Tensor:
    return estimate


def _record(visits: list[tuple[Level, Tensor]], x: Tensor, level: Level, noise: Iterator[Tensor]) -> Tensor:
    visits.append((level, x))
    return x


def one_point_error(step: Step) -> float:
    """Largest relative distance from the point over 1 to 20 steps, for data that consist of one point."""
    point = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    worst = 0.0
    for n in (1, 2, 5, 20):
        noise = rng.stream((3,), n, torch.arange(8), torch.float64)
        end = sample(closed_form.empirical(point), 80 * next(noise), timesteps.karras(n), step, noise)
        worst = max(worst, float((end - point).norm(dim=1).max() / point.norm()))
    return worst


def main() -> int:
    """Print the table and the JSON line."""
    rows = [("solver", "order", "error at 32", "error at 512", "one point", "mean law", "variance law")]
    figures, goals = {}, {}
    for name, step in SOLVERS.items():
        mean, variance = law_errors(step)
        point = one_point_error(step)
        figures[name] = {"one_point": point, "mean_law": mean, "variance_law": variance}
        goals[f"{name}: exact on one point, mean and variance laws"] = max(point, mean, variance) < 1e-9
        order, at32, at512 = "stochastic", "", ""
        if "SDE" not in name and name != "ancestral":
            errors = {n: endpoint_error(step, n) for n in (32, 128, 512)}
            slope = math.log2(errors[128] / errors[512]) / 2
            figures[name] |= {"order": slope, "error_32": errors[32], "error_512": errors[512]}
            order, at32, at512 = f"{slope:.3f}", f"{errors[32]:.1e}", f"{errors[512]:.1e}"
            if name in ORDERS:
                goals[f"{name}: order {ORDERS[name]} within 0.1"] = abs(slope - ORDERS[name]) < 0.1
        rows.append((name, order, at32, at512, f"{point:.0e}", f"{mean:.0e}", f"{variance:.0e}"))
    print(table(rows))
    return finish("convergence", figures, goals)


if __name__ == "__main__":
    sys.exit(main())
