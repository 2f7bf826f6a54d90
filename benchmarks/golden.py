"""Writes `tests/golden/*.npz`, results of other libraries, so that `benchmarks.parity` does not need them:
`python -m benchmarks.golden`, with the packages of `benchmarks/golden-requirements.txt` on the path.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import oracles
from diffusion_core.schedules import sigma_level
from tasks.common import files

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
SD = 0.5  # sigma_data of k-diffusion's losses


def module(name: str) -> types.ModuleType:
    """A module of a package, without running the package's `__init__`, which may need more libraries."""
    top = name.split(".")[0]
    spec = importlib.machinery.PathFinder.find_spec(top)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"{top} is not installed in this environment.")
    package = types.ModuleType(top)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[top] = package
    return importlib.import_module(name)


def k_diffusion() -> dict[str, Tensor]:
    """The end point of every sampler on the same 18 Karras levels and the same list of noises."""
    library = module("k_diffusion.sampling")
    denoise = oracles.model()
    noises = oracles.normals(40, seed=2)
    sigmas = library.get_sigmas_karras(18, 0.02, 40.0).double()
    start = sigmas[0] * oracles.normals(1)[0]

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(x, sigma_level(sigma[0]), {})

    def fresh() -> Callable[..., Tensor]:
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
    for share in (0.5, 1.0):
        ends[f"euler_ancestral eta {share:g}"] = library.sample_euler_ancestral(
            model, start, sigmas, eta=share, noise_sampler=fresh(), **quiet
        )
    return {"noises": torch.stack(noises), "sigmas": sigmas, "start": start, **ends}


def smalldiffusion() -> dict[str, Tensor]:
    """Its sampler as DDIM (mu = 0) and as DDPM (mu = 1/2), 20 steps of its DDPM schedule."""
    library = module("smalldiffusion.diffusion")
    denoise = oracles.model()
    noises = oracles.normals(20, seed=3)
    sigmas = library.ScheduleDDPM(1000).sample_sigmas(20).double()
    start = sigmas[0] * oracles.normals(1)[0]
    ends = {}
    for name, mu in (("ddim", 0.0), ("ddpm", 0.5)):
        stream = iter(noises)
        model = SimpleNamespace(
            eval=lambda: None,
            rand_input=lambda count, stream=stream: next(stream),
            predict_eps_cfg=lambda x, sigma, *_: (x - denoise(x, sigma_level(sigma), {})) / sigma,
        )
        device = SimpleNamespace(device=start.device)  # all it needs of an accelerator
        *_, ends[name] = library.samples(model, sigmas, mu=mu, xt=start, accelerator=device)
    return {"noises": torch.stack(noises), "sigmas": sigmas, "start": start, **ends}


def torchcfm() -> dict[str, Tensor]:
    """The point and the velocity of its straight and its variance-preserving flow at times between noise and data."""
    library = module("torchcfm.conditional_flow_matching")
    noise, data = oracles.normals(2, seed=4)
    t = torch.linspace(0, 1, len(noise), dtype=torch.float64)
    out = {"noise": noise, "data": data, "t": t}
    for name, kind in (
        ("linear", library.ConditionalFlowMatcher),
        ("trig", library.VariancePreservingConditionalFlowMatcher),
    ):
        _, out[f"{name} x"], out[f"{name} velocity"] = kind(0.0).sample_location_and_conditional_flow(noise, data, t)
    return out


def predicted(x: Tensor) -> Tensor:
    """A stand-in for a network's output at x; enough to compare losses."""
    return torch.sin(2 * x)


class _Stub(nn.Module):
    channels = out_dim = 1
    self_condition = False

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return predicted(x)


def losses() -> dict[str, Tensor]:
    """Losses, an example each: k-diffusion's three weightings, and lucidrains' three objectives, plain and min-SNR."""
    x0, noise = (part.reshape(-1, 1, 2, 2) for part in oracles.normals(2, seed=5))
    sigma = torch.logspace(-2, 1.5, len(x0), dtype=torch.float64)
    t = torch.arange(len(x0)) * 15
    out = {"x0": x0, "noise": noise, "sigma": sigma, "t": t}
    layers = module("k_diffusion.layers")
    for weighting in ("karras", "soft-min-snr", "snr"):
        denoiser = layers.Denoiser(_Stub(), SD, weighting)
        out[f"k-diffusion loss {weighting}"] = denoiser.loss(x0, noise, sigma)
    library = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    for objective in ("pred_noise", "pred_x0", "pred_v"):
        for clipped in (False, True):
            diffusion = library.GaussianDiffusion(
                _Stub(), image_size=2, objective=objective, beta_schedule="linear", min_snr_loss_weight=clipped
            ).double()
            value = diffusion.p_losses(x0, t, noise, loss_reduction="none")
            out[f"lucidrains {objective}{' min-snr' if clipped else ''}"] = value
    return out


def write(name: str, arrays: Mapping[str, Tensor]) -> None:
    """One file of the folder."""
    with files.new_file(FOLDER / f"{name}.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]


if __name__ == "__main__":
    for make in (k_diffusion, smalldiffusion, torchcfm, losses):
        write(make.__name__, make())
