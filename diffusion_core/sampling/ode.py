"""The probability-flow ODE, solved by an adaptive Runge-Kutta method, and the exact log-likelihood.

With x scaled to a^2 + s^2 = 1 and the angle as time, the ODE is dx/dangle = (cos(angle) x - x0_hat) / sin(angle), which is
finite for all s > 0. Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.sampling.loop import Denoise, Estimate, Step
from diffusion_core.schedules import Level

Slope = Callable[[Tensor, Tensor], Tensor]  # (angle [B], state [B, n]) -> [B, n]

# Dormand & Prince 1980: nodes, stages, and fifth-order minus fourth-order weights.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def dormand_prince(
    slope: Slope, state: Tensor, start: float, end: float, rtol: float, atol: float
) -> tuple[Tensor, int]:
    """The state `[B, n]` integrated from start to end, and the number of slope evaluations.

    Each row has its own step size, so that it does not depend on the other rows; rows that have arrived wait for the others.
    Raises ArithmeticError if a step size underflows.
    """
    time = state.new_full((len(state),), start)
    h = state.new_full((len(state),), (end - start) / 20)
    first = slope(time, state)
    evaluations = 1
    while bool((time != end).any()):
        left = end - time
        last = h.abs() >= left.abs()
        h = torch.where(last, left, h)
        width = h[:, None]
        slopes = [first]
        for node, stage in zip(_NODES[1:], _STAGES[1:], strict=True):
            at = state + width * sum(c * k for c, k in zip(stage, slopes, strict=True))
            slopes.append(slope(time + node * h, at))
        evaluations += 6
        error = width * sum(c * k for c, k in zip(_ERROR, slopes, strict=True))
        scale = atol + rtol * torch.maximum(state.abs(), at.abs())
        size = (error / scale).square().mean(1).sqrt()
        accepted = size <= 1
        stuck = ~accepted & (~size.isfinite() | (h.abs() < 1e-9 * abs(end - start)))
        if bool(stuck.any()):
            row = int(stuck.nonzero()[0])
            raise ArithmeticError(
                f"the step size of the ODE solver underflowed at angle {float(time[row]):.6g} (error {float(size[row]):.3g})"
            )
        time = torch.where(accepted, torch.where(last, end, time + h), time)
        state = torch.where(accepted[:, None], at, state)
        first = torch.where(accepted[:, None], slopes[-1], first)
        h = h * (0.9 * size.clamp(min=1e-8) ** -0.2).clamp(0.2, 5.0)
    return state, evaluations


@torch.no_grad()
def solve(
    denoiser: Denoiser,
    x: Tensor,
    start: Level,
    end: Level,
    cond: Cond | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Tensor, int]:
    """x `[B, *S]` at level `start` integrated along the ODE to level `end`, and the number of denoiser evaluations.

    Either level may be the noisier one; both need s > 0.
    """

    def slope(angle: Tensor, state: Tensor) -> Tensor:
        level = Level(angle.cos(), angle.sin())
        z = state.view_as(x)
        a, s = level.like(z)
        return ((a * z - denoiser(z, level, cond or {})) / s).flatten(1)

    z = (x / torch.hypot(*start).to(x)).flatten(1)
    z, evaluations = dormand_prince(slope, z, float(start.angle), float(end.angle), rtol, atol)
    return z.view_as(x) * torch.hypot(*end).to(x), evaluations


def adaptive(rtol: float = 1e-4, atol: float = 1e-4) -> Step:
    """A step of any length along the ODE, in as many adaptive steps as the tolerances need; a step to s = 0 gives x0_hat.

    The tolerances are of x scaled to a^2 + s^2 = 1. Use it with three timesteps: the noisiest, the least noisy, and s = 0.
    """

    def step(history: list[Estimate], to: Level, denoise: Denoise, _: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        if to.s == 0:
            return to.a.to(x) * x0
        return solve(lambda x, level, _: denoise(x, level), x, level, to, None, rtol, atol)[0]

    return step


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    start: Level,
    end: Level,
    sd: float,
    cond: Cond | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Tensor:
    """log p(x), `[B]` nats, of x `[B, *S]` at level `start` (little noise), by the ODE to level `end` (much noise).

    The divergence is exact and needs one backward pass per dimension. At `end` x is assumed normal with mean 0 and standard
    deviation sqrt((a sd)^2 + s^2); a nonzero data mean makes an error of about mean / sigma. Divide by -d log 2 for bits per
    dimension.
    """
    d = x[0].numel()

    def slope(angle: Tensor, state: Tensor) -> Tensor:
        level = Level(angle.cos(), angle.sin())
        with torch.enable_grad():
            flat = state[:, :d].detach().requires_grad_()
            x0 = denoiser(flat.view_as(x), level, cond or {}).flatten(1)
            trace = sum(torch.autograd.grad(x0[:, i].sum(), flat, retain_graph=i + 1 < d)[0][:, i] for i in range(d))
        velocity = (level.a[:, None] * flat - x0) / level.s[:, None]
        divergence = (level.a * d - trace) / level.s
        return torch.cat([velocity, divergence[:, None]], 1).detach()

    size = torch.hypot(*start).to(x)
    state = torch.cat([(x / size).flatten(1), x.new_zeros(len(x), 1)], 1)
    state, _ = dormand_prince(slope, state, float(start.angle), float(end.angle), rtol, atol)
    last = Level(end.angle.cos(), end.angle.sin())
    var = ((last.a * sd) ** 2 + last.s**2).to(x)
    prior = -0.5 * (state[:, :d].square().sum(1) / var + d * torch.log(2 * torch.pi * var))
    return prior + state[:, d] - d * size.log()
