"""Step-for-step agreement with azula, diffusers and ema-pytorch: `python -m benchmarks.parity`.

Needs the development extras. k-diffusion and others are compared through `tests/golden/k_diffusion.npz`, made by
`benchmarks.golden` in an environment of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ema_pytorch.post_hoc_ema import KarrasEMA, sigma_rel_to_gamma

from benchmarks import oracles
from benchmarks.report import finish, table
from diffusion_core.average import power, power_gamma
from diffusion_core.level import sigma_level
from diffusion_core.sample import Step, sample
from diffusion_core.step import ddim, dpmpp_2m, dpmpp_3m, heun, lms

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "k_diffusion.npz"
GOLDEN_STEPS: dict[str, Step] = {
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


def trajectories() -> dict[str, tuple[float, float]]:
    """Largest difference at the end of each other library's run, and its tolerance."""
    denoise = oracles.model()
    out = {}
    for run in (*oracles.azula_runs(), *oracles.diffusers_runs()):
        ours = sample(denoise, run.start, run.walk, run.step, iter(run.noise))
        out[run.name] = (float((ours - run.end).abs().max()), run.tolerance)
    return out


def golden(path: Path = GOLDEN) -> dict[str, tuple[float, float]]:
    """The same for the stored trajectories of k-diffusion."""
    stored = np.load(path, allow_pickle=False)
    noises = [torch.from_numpy(n) for n in stored["noises"]]
    walk = [sigma_level(sigma) for sigma in torch.from_numpy(stored["sigmas"])]
    denoise = oracles.model()
    out = {}
    for name, step in GOLDEN_STEPS.items():
        ours = sample(denoise, torch.from_numpy(stored["start"]), walk, step, iter(noises))
        out[f"k-diffusion {name}"] = (float((ours - torch.from_numpy(stored[name])).abs().max()), 1e-12)
    return out


def averages() -> dict[str, tuple[float, float]]:
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
    found = {**trajectories(), **averages()}
    if GOLDEN.is_file():
        found |= golden()
    rows = [("oracle", "largest difference", "tolerance")]
    rows += [(name, f"{value:.1e}", f"{tolerance:.0e}") for name, (value, tolerance) in found.items()]
    print(table(rows))
    goals = {f"{name} within {tolerance:.0e}": value <= tolerance for name, (value, tolerance) in found.items()}
    return finish("parity", {name: value for name, (value, _) in found.items()}, goals)


if __name__ == "__main__":
    sys.exit(main())
