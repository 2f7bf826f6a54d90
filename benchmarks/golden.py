"""Writes `tests/golden/k_diffusion.npz`: `python -m benchmarks.golden`, in an environment that has k-diffusion 0.1.1.

Only its sampling module is imported, as the package itself asks for CLIP and more.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks import oracles
from benchmarks.parity import GOLDEN
from diffusion_core.level import sigma_level


def sampling_module() -> types.ModuleType:
    """k_diffusion.sampling without the rest of its package."""
    spec = importlib.machinery.PathFinder.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("k-diffusion is not installed in this environment.")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    return importlib.import_module("k_diffusion.sampling")


def main() -> None:
    """Run every sampler on one walk of 18 Karras levels with one list of noises, and store where they end."""
    library = sampling_module()
    denoise = oracles.model()
    noises = oracles.normals(40, seed=2)
    sigmas = library.get_sigmas_karras(18, 0.02, 40.0).double()
    start = sigmas[0] * oracles.normals(1)[0]

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma_level(sigma[0]), {})

    def fresh():
        stream = iter(noises)
        return lambda *_: next(stream)

    quiet = {"disable": True}
    ends = {
        "euler": library.sample_euler(model, start, sigmas, **quiet),
        "heun": library.sample_heun(model, start, sigmas, **quiet),
        "lms": library.sample_lms(model, start, sigmas, **quiet),
        "dpmpp_2m": library.sample_dpmpp_2m(model, start, sigmas, **quiet),
    }
    for eta in (0, 1):
        for name in ("dpmpp_2m_sde", "dpmpp_3m_sde"):
            sampler = getattr(library, f"sample_{name}")
            ends[f"{name} eta {eta}"] = sampler(model, start, sigmas, eta=eta, noise_sampler=fresh(), **quiet)
    for eta in (0.5, 1):
        ends[f"euler_ancestral eta {eta}"] = library.sample_euler_ancestral(
            model, start, sigmas, eta=eta, noise_sampler=fresh(), **quiet
        )
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{GOLDEN}.tmp.npz")
    arrays = {name: end.numpy() for name, end in ends.items()}
    np.savez_compressed(
        temporary, noises=torch.stack(noises).numpy(), sigmas=sigmas.numpy(), start=start.numpy(), **arrays
    )
    temporary.replace(GOLDEN)


if __name__ == "__main__":
    main()
