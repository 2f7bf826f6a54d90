"""Agreement with other libraries, step for step and loss for loss: `python -m benchmarks.parity`.

azula, diffusers and ema-pytorch are development extras and run here. k-diffusion, smalldiffusion, torchcfm and
denoising-diffusion-pytorch are compared through `tests/golden/*.npz`, which `benchmarks.golden` made with them.
"""

from __future__ import annotations

import math
import sys

import diffusers
import numpy as np
import torch
from diffusers.training_utils import compute_snr
from ema_pytorch.post_hoc_ema import KarrasEMA, sigma_rel_to_gamma
from torch import Tensor

from benchmarks import oracles
from benchmarks.golden import FOLDER, SD, predicted
from benchmarks.report import finish, table
from diffusion_core import losses, schedules
from diffusion_core.loss_weights import min_snr, soft_min_snr
from diffusion_core.sampling.loop import Step, sample
from diffusion_core.sampling.solvers import ddim, dpmpp_2m, dpmpp_3m, heun, lms
from diffusion_core.schedules import Level, sigma_level
from diffusion_core.targets import EPS, FLOW, X0, Target, V, edm, to_x0
from diffusion_core.training.ema import power, power_gamma

Found = dict[str, tuple[float, float]]  # what was compared -> (largest difference, tolerance)

K_DIFFUSION_STEPS: dict[str, Step] = {
    "euler": ddim(),
    "heun": heun(),
    "lms": lms(4),
    "dpmpp_2m": dpmpp_2m(),
    "dpmpp_2m_sde eta 0": dpmpp_2m(0.0),
    "dpmpp_2m_sde eta 1": dpmpp_2m(1.0),
    "dpmpp_3m_sde eta 0": dpmpp_3m(0.0),
    "dpmpp_3m_sde eta 1": dpmpp_3m(1.0),
    "euler_ancestral eta 0.5": ddim(0.5),
    "euler_ancestral eta 1": ddim(1.0),
}


SMALLDIFFUSION_STEPS: dict[str, Step] = {"ddim": ddim(), "ddpm": ddim(1.0)}


def trajectories() -> Found:
    """The ends of azula's and diffusers' runs."""
    denoise = oracles.model()
    out = {}
    for run in (*oracles.azula_runs(), *oracles.diffusers_runs()):
        ours = sample(denoise, run.start, run.timesteps, run.step, iter(run.noise))
        out[run.name] = (_apart(ours, run.end), run.tolerance)
    return out


def tables() -> Found:
    """diffusers' noising, its velocity and its signal-to-noise ratio, in the float32 that it keeps its tables in."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    x0, noise = oracles.normals(2, seed=6)
    t = torch.arange(len(x0)) * 15
    here = schedules.betas(schedules.linear_betas())(t)
    p, q = V(here)
    ratio = compute_snr(scheduler, t).double() / here.snr
    return {
        "diffusers add_noise": (_apart(here.corrupt(x0, noise), scheduler.add_noise(x0, noise, t)), 5e-6),
        "diffusers get_velocity": (_apart(Level(p, q).corrupt(x0, noise), scheduler.get_velocity(x0, noise, t)), 5e-6),
        "diffusers compute_snr, relative": (
            float((ratio - 1).abs().max()),
            6e-4,
        ),  # float32 resolves 1 - a^2 = 1e-4 to 6e-4
    }


def golden() -> Found:
    """Everything that `benchmarks.golden` stored."""
    return {**_golden_ends(), **_golden_flows(), **_golden_losses()}


def _golden_ends() -> Found:
    denoise = oracles.model()
    out = {}
    for library, steps in (("k_diffusion", K_DIFFUSION_STEPS), ("smalldiffusion", SMALLDIFFUSION_STEPS)):
        stored = _stored(library)
        levels = [sigma_level(sigma) for sigma in stored["sigmas"]]
        # rounding is relative to the largest sigma, 40 and 157
        tolerance = 1e-12 if library == "k_diffusion" else 5e-12
        for name, step in steps.items():
            ours = sample(denoise, stored["start"], levels, step, iter(stored["noises"]))
            out[f"{library.replace('_', '-')} {name}"] = (_apart(ours, stored[name]), tolerance)
    return out


def _golden_flows() -> Found:
    """torchcfm's time runs from noise to data: its velocity is minus ours, per its own unit of time."""
    stored = _stored("torchcfm")
    out = {}
    targets: tuple[tuple[str, schedules.NoiseSchedule, Target, float], ...] = (
        ("linear", schedules.linear(), FLOW, 1.0), ("trig", schedules.trig(), V, math.pi / 2),
    )  # fmt: skip
    for name, path, target, speed in targets:
        here = path(1 - stored["t"])
        velocity = -speed * Level(*target(here)).corrupt(stored["data"], stored["noise"])
        out[f"torchcfm {name} point"] = (
            _apart(here.corrupt(stored["data"], stored["noise"]), stored[f"{name} x"]),
            1e-12,
        )
        out[f"torchcfm {name} velocity"] = (_apart(velocity, stored[f"{name} velocity"]), 1e-12)
    return out


def _golden_losses() -> Found:
    """Relative differences. lucidrains' plain v loss is the noise's: it multiplies by SNR / (SNR + 1)."""
    stored = _stored("losses")
    karras, chain = sigma_level(stored["sigma"]), schedules.betas(schedules.linear_betas())(stored["t"])
    cases: dict[str, tuple[Target, losses.Weight, Level]] = {
        "k-diffusion loss karras": (edm(SD), losses.unit(edm(SD)), karras),
        "k-diffusion loss soft-min-snr": (edm(SD), soft_min_snr(SD), karras),
        "k-diffusion loss snr": (edm(SD), losses.unit(EPS), karras),
        "lucidrains pred_noise": (EPS, losses.unit(EPS), chain),
        "lucidrains pred_x0": (X0, losses.unit(EPS), chain),
        "lucidrains pred_v": (V, losses.unit(EPS), chain),
        **{f"lucidrains {name} min-snr": (target, min_snr(5), chain)
           for name, target in (("pred_noise", EPS), ("pred_x0", X0), ("pred_v", V))},
    }  # fmt: skip
    out = {}
    for name, (target, factor, here) in cases.items():
        sd = SD if name.startswith("k-diffusion") else 1.0

        def denoise(x: Tensor, at: Level, _: dict[str, Tensor], target: Target = target, sd: float = sd) -> Tensor:
            scale = (1 / torch.hypot(at.a * sd, at.s)).reshape(-1, 1, 1, 1)
            return to_x0(predicted(scale * x), x, at, target)

        ours = losses.loss(denoise, stored["x0"], here, stored["noise"], factor)
        # lucidrains keeps its tables in float32
        tolerance = 1e-12 if name.startswith("k-diffusion") else 1e-6
        out[name] = (float((ours / stored[name] - 1).abs().max()), tolerance)
    return out


def _stored(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def averages() -> Found:
    """Exponents and decays of the power average against ema-pytorch."""
    gamma = max(abs(power_gamma(s) - float(sigma_rel_to_gamma(s))) for s in (0.05, 0.1, 0.15, 0.2))
    peer = KarrasEMA(torch.nn.Linear(1, 1), sigma_rel=0.1)
    decay = power(0.1)
    worst = 0.0
    for step in range(2, 50):
        peer.step.fill_(step - 1)  # its clock is the step before
        worst = max(worst, abs(peer.beta - decay(step * 10, 10)))
    return {"ema-pytorch exponent": (gamma, 1e-8), "ema-pytorch decay": (worst, 1e-8)}


def main() -> int:
    """Print the table; every difference within its tolerance is the goal."""
    found = {**trajectories(), **tables(), **golden(), **averages()}
    rows: list[tuple[str, ...]] = [("oracle", "largest difference", "tolerance")]
    rows += [(name, f"{value:.1e}", f"{tolerance:.0e}") for name, (value, tolerance) in found.items()]
    print(table(rows))
    goals = {f"{name} within {tolerance:.0e}": value <= tolerance for name, (value, tolerance) in found.items()}
    return finish("parity", {name: value for name, (value, _) in found.items()}, goals)


if __name__ == "__main__":
    sys.exit(main())
