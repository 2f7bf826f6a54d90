"""Schedulers of diffusers as noise schedules and timesteps.

A scheduler is only asked which noise levels it would visit. The steps between them are `diffusion_core`'s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffusion_core import schedules
from diffusion_core.sampling.timesteps import Timesteps, clean, levels
from diffusion_core.schedules import Level, NoiseSchedule, logsnr_level
from diffusion_core.targets import EPS, FLOW, X0, Target, V
from tasks.common.errors import UserError
from tasks.common.files import read_json
from tasks.common.published import package

CONFIG = "scheduler_config.json"
TARGETS: dict[str, Target] = {"epsilon": EPS, "v_prediction": V, "sample": X0, "flow_prediction": FLOW}
SMALLEST = 2.0**-24  # of a_t^2: schedules with pure noise at the end have 0, where log-SNR is infinite
# Their sigmas are those of x0 + sigma eps; they begin at this sigma, or at the noise alone with the same variance.
EXPLODING = ("Euler", "Heun", "LMS", "KDPM2")


class Walk(NamedTuple):
    """Timesteps, and the standard deviation of the noise at which sampling starts."""

    timesteps: Timesteps
    start: float


def read(folder: Path, name: str | None = None) -> Any:
    """The scheduler in a folder, or the scheduler `name` with the same configuration. UserError if diffusers has none."""
    diffusers = package("diffusers")
    config = read_json(folder / CONFIG)
    name = name or config.get("_class_name", "")
    if not str(name).endswith("Scheduler") or not hasattr(diffusers, str(name)):
        raise UserError(f"{folder / CONFIG}: diffusers has no scheduler {name!r}.")
    return getattr(diffusers, str(name)).from_config(config)


def is_flow(scheduler: Any) -> bool:
    """Whether noisy examples are (1 - t) x0 + t eps."""
    return type(scheduler).__name__.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas"))


def target(scheduler: Any) -> Target:
    """What the network predicts. Raises UserError if it is none of noise, v, x0 and velocity."""
    name = "flow_prediction" if is_flow(scheduler) else scheduler.config.get("prediction_type", "epsilon")
    if name not in TARGETS:
        raise UserError(f"prediction_type {name!r} is not known; the known ones are {', '.join(TARGETS)}.")
    return TARGETS[name]


def schedule(scheduler: Any) -> NoiseSchedule:
    """The noise schedule on which the network was trained: t is the number of a level, or a flow's time in 0 ... 1.

    A flow's schedule includes the constant shift to noisier levels. Raises UserError if the scheduler has neither.
    """
    if is_flow(scheduler):
        shift = float(scheduler.config.get("shift", 1.0) or 1.0)
        linear = schedules.linear()
        return (
            linear if shift == 1 or scheduler.config.get("use_dynamic_shifting") else schedules.shift(linear, 1 / shift)
        )
    if not hasattr(scheduler, "betas"):
        raise UserError(f"A {type(scheduler).__name__} has no betas, so the levels of its network are not known.")
    kept = torch.cumprod(1 - scheduler.betas.double(), 0).clamp(min=SMALLEST)
    return schedules.betas(1 - kept / torch.cat([kept.new_ones(1), kept[:-1]]))


def walk(scheduler: Any, steps: int, tokens: int) -> Walk:
    """The levels that a pipeline visits in so many steps. `tokens`: places of the picture, for shifts that depend on it."""
    name = type(scheduler).__name__
    if is_flow(scheduler):
        return Walk(_flow(scheduler, steps, tokens), 1.0)
    if not hasattr(scheduler, "sigmas") or not hasattr(scheduler, "betas"):  # DDIM, DDPM, PNDM: numbers of levels
        scheduler = package("diffusers").DDIMScheduler.from_config(scheduler.config)
        scheduler.set_timesteps(steps)
        known = schedule(scheduler)
        numbers = scheduler.timesteps.double()
        to_clean = scheduler.config.set_alpha_to_one
        end = [clean()] if to_clean else levels(known, torch.zeros(1))
        return Walk([*levels(known, numbers), *end], 1.0)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().cpu()
    sigmas = torch.cat([sigmas[:1], sigmas[1:][sigmas[1:] != sigmas[:-1]]])  # second-order solvers repeat them
    made = [logsnr_level(-2 * sigma.log()) if sigma > 0 else clean() for sigma in sigmas]
    start = 1.0
    if name.startswith(EXPLODING):
        start = float(scheduler.init_noise_sigma) / float(torch.hypot(sigmas[0], torch.ones_like(sigmas[0])))
    return Walk(made, start)


def _flow(scheduler: Any, steps: int, tokens: int) -> list[Level]:
    config = scheduler.config
    options: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        first, last = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        options["mu"] = first + (last - first) * (tokens - low) / (high - low)
        options["sigmas"] = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist()
    elif config.get("use_flow_sigmas"):
        pass  # solvers of variance-preserving models that were taught flows compute their own
    scheduler.set_timesteps(**({} if "sigmas" in options else {"num_inference_steps": steps}), **options)
    sigmas: Tensor = scheduler.sigmas.double().cpu()
    return [Level(1 - sigma, sigma) for sigma in sigmas]
