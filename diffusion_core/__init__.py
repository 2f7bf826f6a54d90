"""Diffusion models in plain PyTorch: recipes, networks, training, sampling. Imports torch and the standard library only.

A noise *level* is a pair (a, s) with x = a x0 + s eps, and a *noise schedule* is a function from time to levels (`schedules`).
A *target* is what the network predicts (`targets`); a *denoiser* is a network that estimates x0 (`denoiser`). A *recipe* is one
method of the literature: schedule, target, loss weight, timesteps and solver (`presets`). `guidance` and `inverse` modify
denoisers; `sampling` has the sampling loop, solvers and timesteps; `training` has the training loop; `nets` has the networks.

The names below are imported on first use, so that `import diffusion_core` is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_core.codecs import Affine
    from diffusion_core.denoiser import Denoiser, Posterior, Preconditioned
    from diffusion_core.guidance import cfg
    from diffusion_core.nets.dit import DiT
    from diffusion_core.nets.mlp import MLP
    from diffusion_core.nets.unet import UNet
    from diffusion_core.recipe import Recipe
    from diffusion_core.sampling.loop import generate, sample
    from diffusion_core.schedules import Level, NoiseSchedule
    from diffusion_core.training.trainer import TrainConfig, Trainer

__all__ = [
    "MLP",
    "Affine",
    "Denoiser",
    "DiT",
    "Level",
    "NoiseSchedule",
    "Posterior",
    "Preconditioned",
    "Recipe",
    "TrainConfig",
    "Trainer",
    "UNet",
    "cfg",
    "generate",
    "sample",
]

_MODULES = {
    "codecs": ("Affine",),
    "denoiser": ("Denoiser", "Posterior", "Preconditioned"),
    "guidance": ("cfg",),
    "nets.dit": ("DiT",),
    "nets.mlp": ("MLP",),
    "nets.unet": ("UNet",),
    "recipe": ("Recipe",),
    "sampling.loop": ("generate", "sample"),
    "schedules": ("Level", "NoiseSchedule"),
    "training.trainer": ("TrainConfig", "Trainer"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
