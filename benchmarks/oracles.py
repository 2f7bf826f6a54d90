"""Trajectories of other libraries on the exact mixture denoiser, each with its timesteps, for `benchmarks.parity`.

The model has no weights and is not linear, so a wrong coefficient shows. Each library gets the estimate in the form it
expects. Stochastic samplers share one list of noises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import azula.denoise
import azula.noise
import azula.sample
import diffusers
import torch
from torch import Tensor

from diffusion_core import schedules as level
from diffusion_core.denoiser import Denoiser
from diffusion_core.extras import closed_form
from diffusion_core.sampling import timesteps
from diffusion_core.sampling.loop import Step
from diffusion_core.sampling.solvers import FLOW_ODE, SIGMA_ODE, ddim, dpmpp_2m, heun, unipc
from diffusion_core.schedules import Level, sigma_level

D, B = 4, 64


def model() -> Denoiser:
    """The exact denoiser of a mixture of five normals in four dimensions."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(5, D, generator=generator, dtype=torch.float64)
    sds = 0.1 + 0.3 * torch.rand(5, generator=generator, dtype=torch.float64)
    return closed_form.mixture(torch.full((5,), 0.2, dtype=torch.float64), means, sds)


def normals(count: int, seed: int = 1) -> list[Tensor]:
    """Standard normal `[B, D]` float64 draws."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, D, generator=generator, dtype=torch.float64) for _ in range(count)]


class Trajectory(NamedTuple):
    """One run of another library, and the step that should reproduce it."""

    name: str
    start: Tensor
    end: Tensor
    timesteps: list[Level]
    step: Step
    noise: list[Tensor]
    tolerance: float


def azula_runs() -> Iterator[Trajectory]:
    """DDIM, Euler and Heun of azula on its four schedules."""
    denoise = model()

    class Wrapped(azula.denoise.Denoiser):  # type: ignore[misc] # azula is not analysed
        def __init__(self, schedule: Any) -> None:
            super().__init__()
            self.schedule = schedule

        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Any:
            here = Level(*(v.reshape(()) for v in self.schedule(t)))
            mean = denoise(x, here, {})
            return azula.denoise.DiracPosterior(mean=mean)

    schedules = {
        "VP": azula.noise.VPSchedule(),
        "VE": azula.noise.VESchedule(1e-2, 1e2),
        "cosine": azula.noise.CosineSchedule(),
        "rectified": azula.noise.RectifiedSchedule(),
    }
    samplers = {
        "DDIM": (azula.sample.DDIMSampler, ddim()),
        "Euler": (azula.sample.EulerSampler, ddim()),
        "Heun": (azula.sample.HeunSampler, heun(SIGMA_ODE)),
    }
    for schedule_name, schedule in schedules.items():
        for sampler_name, (sampler, step) in samplers.items():
            run = sampler(Wrapped(schedule), steps=20, silent=True, dtype=torch.float64)
            steps = [Level(*schedule(t)) for t in run.timesteps]
            start = steps[0].s * normals(1)[0]
            end = run(start)
            tolerance = max(1e-12, 1e-14 * float(steps[0].sigma))  # rounding is relative to the largest sigma
            yield Trajectory(f"azula {sampler_name} {schedule_name}", start, end, steps, step, [], tolerance)


def diffusers_runs() -> Iterator[Trajectory]:
    """Schedulers of diffusers: the discrete chain, Karras levels, EDM and flow matching."""
    yield from _chains()
    yield from _sigmas()
    yield from _flows()


def _chains() -> Iterator[Trajectory]:
    denoise = model()
    beta = dict(num_train_timesteps=1000, beta_schedule="linear", clip_sample=False)
    cases: list[tuple[str, Any, int, Step, float]] = [
        ("DDIM trailing", diffusers.DDIMScheduler(timestep_spacing="trailing", **beta), 20, ddim(), 5e-6),
        ("DDIM leading", diffusers.DDIMScheduler(timestep_spacing="leading", **beta), 20, ddim(), 5e-6),
        ("DDIM eta 1", diffusers.DDIMScheduler(timestep_spacing="trailing", **beta), 20, ddim(1.0), 5e-6),
        ("DDPM 1000 steps", diffusers.DDPMScheduler(variance_type="fixed_small", **beta), 1000, ddim(1.0), 1e-4),
    ]
    for name, scheduler, n, step, tolerance in cases:
        scheduler.set_timesteps(n)
        noises = normals(n + 1)
        x = start = noises[0]
        chain = scheduler.alphas_cumprod.double()
        steps = [Level(chain[t].sqrt(), (1 - chain[t]).sqrt()) for t in scheduler.timesteps]
        for i, (t, here) in enumerate(zip(scheduler.timesteps, steps, strict=True)):
            eps = (x - here.a * denoise(x, here, {})) / here.s
            if name == "DDIM eta 1":
                x = scheduler.step(eps, t, x, eta=1.0, variance_noise=noises[i + 1]).prev_sample
            elif name == "DDPM 1000 steps":
                x = _ddpm_step(scheduler, eps, t, x, noises[i + 1])
            else:
                x = scheduler.step(eps, t, x).prev_sample
        yield Trajectory(f"diffusers {name}", start, x, [*steps, timesteps.clean()], step, noises[1:], tolerance)


def _ddpm_step(scheduler: Any, eps: Tensor, t: Tensor, x: Tensor, noise: Tensor) -> Tensor:
    """A step of DDPMScheduler with our noise instead of its own."""
    module = diffusers.schedulers.scheduling_ddpm
    drawn: Callable[..., Tensor] = module.randn_tensor
    module.randn_tensor = lambda *_, **__: noise
    try:
        after: Tensor = scheduler.step(eps, t, x).prev_sample
        return after
    finally:
        module.randn_tensor = drawn


def _sigmas() -> Iterator[Trajectory]:
    """Schedulers whose state is in the sigma gauge, and multistep ones in the variance-preserving gauge."""
    denoise = model()
    karras = dict(use_karras_sigmas=True)
    for name, scheduler, step, evaluations in (
        ("Euler Karras", diffusers.EulerDiscreteScheduler(**karras), ddim(), 1),
        ("Heun Karras", diffusers.HeunDiscreteScheduler(**karras), heun(), 2),
        ("EDM Euler", diffusers.EDMEulerScheduler(), ddim(), 1),
        ("EDM DPM++ 2M", diffusers.EDMDPMSolverMultistepScheduler(final_sigmas_type="zero"), dpmpp_2m(), 1),
    ):
        scheduler.set_timesteps(18)
        sigmas = scheduler.sigmas.double()
        distinct = sigmas if evaluations == 1 else torch.cat([sigmas[:1], sigmas[1::2]])
        steps = [sigma_level(sigma) for sigma in distinct]
        x = start = steps[0].s * normals(1)[0]
        for i, t in enumerate(scheduler.timesteps):
            here = sigma_level(sigmas[i])
            x0 = denoise(x, here, {})
            scheduler.scale_model_input(x, t)
            if name.startswith("EDM"):
                # These expect the network's raw output, so invert their preconditioning.
                sd = scheduler.config.sigma_data
                skip = sd**2 / (here.s**2 + sd**2)
                out = here.s * sd / torch.sqrt(here.s**2 + sd**2)
                x = scheduler.step((x0 - skip * x) / out, t, x).prev_sample
            else:
                x = scheduler.step((x - x0) / here.s, t, x).prev_sample
        yield Trajectory(f"diffusers {name}", start, x, steps, step, [], 5e-6)
    multistep = dict(num_train_timesteps=1000, beta_schedule="linear", timestep_spacing="trailing")
    not_clean = dict(lower_order_final=False, final_sigmas_type="sigma_min")
    solver = dict(lower_order_final=False, final_sigmas_type="zero", **multistep)
    for name, scheduler, step in (
        ("DPM-Solver++ 2M", diffusers.DPMSolverMultistepScheduler(solver_order=2, **solver), dpmpp_2m()),
        ("DPM-Solver++ 1", diffusers.DPMSolverMultistepScheduler(solver_order=1, **solver), ddim()),
        ("UniPC 2", diffusers.UniPCMultistepScheduler(solver_order=2, lower_order_final=True, **multistep), unipc(2)),
        ("UniPC 3", diffusers.UniPCMultistepScheduler(solver_order=3, **not_clean, **multistep), unipc(3)),
    ):
        scheduler.set_timesteps(20)
        sigmas = scheduler.sigmas.double()
        steps = [Level(1 / torch.sqrt(1 + s**2), s / torch.sqrt(1 + s**2)) for s in sigmas]
        x = start = normals(1)[0]
        for t, here in zip(scheduler.timesteps, steps[:-1], strict=True):
            x = scheduler.step((x - here.a * denoise(x, here, {})) / here.s, t, x).prev_sample
        yield Trajectory(f"diffusers {name}", start, x, steps, step, [], 5e-6)


def _flows() -> Iterator[Trajectory]:
    denoise = model()
    for name, scheduler, step, evaluations in (
        ("FlowMatch Euler", diffusers.FlowMatchEulerDiscreteScheduler(), ddim(), 1),
        ("FlowMatch Heun", diffusers.FlowMatchHeunDiscreteScheduler(), heun(FLOW_ODE), 2),
    ):
        scheduler.set_timesteps(20)
        sigmas = scheduler.sigmas.double()
        distinct = sigmas if evaluations == 1 else torch.cat([sigmas[:1], sigmas[1::2]])
        steps = [level.linear()(t) for t in distinct]
        x = start = normals(1)[0]
        for i, t in enumerate(scheduler.timesteps):
            here = level.linear()(sigmas[i])
            velocity = (x - denoise(x, here, {})) / here.s  # eps - x0 on the straight path
            x = scheduler.step(velocity, t, x).prev_sample
        yield Trajectory(f"diffusers {name}", start, x, steps, step, [], 5e-6)
