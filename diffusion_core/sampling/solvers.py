"""Solvers: `Step` functions that go from one noise level to the next.

A solver combines the latest estimates of x0 with weights that sum to 1, and then calls `transition`. Every solver is therefore
exact for data that consist of a single point, for any timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_core.sampling.loop import Denoise, Estimate, Step
from diffusion_core.sampling.transition import noise_of, transition
from diffusion_core.schedules import Level


def ddim(eta: float = 0.0) -> Step:
    """DDIM at eta = 0, which is Euler's method in `SIGMA_ODE` and in `FLOW_ODE`; DDPM's ancestral step at eta = 1.

    Song et al. 2020 (arXiv 2010.02502), eq. 12 and 16.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, x0, var, share = history[-1]
        return transition(x, x0, level, to, eta, next(noise) if eta else None, var, share)

    return step


def consistency_step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
    """Consistency sampling: the estimate of x0 plus new noise. Song et al. 2023 (arXiv 2303.01469), algorithm 1."""
    return to.corrupt(history[-1].x0, next(noise).to(history[-1].x0))


class OdeForm(NamedTuple):
    """A form of the probability-flow ODE: d(x / scale) / d(coordinate) = direction(x0_hat, eps_hat).

    Euler's method is DDIM in both forms. They differ in the slope that higher-order methods average.
    """

    scale: Callable[[Level], Tensor]
    coordinate: Callable[[Level], Tensor]
    direction: Callable[[Tensor, Tensor], Tensor]

    def slope(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """The slope `[B, *S]` at x `[B, *S]`, given the estimate x0."""
        return self.direction(x0, noise_of(x, x0, level))

    def euler(self, x: Tensor, slope: Tensor, level: Level, to: Level) -> Tensor:
        """x at `level` carried to `to` with a constant slope."""
        scale, distance = self.scale(to), self.coordinate(to) - self.coordinate(level)
        return (scale / self.scale(level)).to(x) * x + (scale * distance).to(x) * slope


SIGMA_ODE = OdeForm(lambda l: l.a, lambda l: l.s / l.a, lambda x0, eps: eps)  # noqa: E741
FLOW_ODE = OdeForm(lambda l: l.a + l.s, lambda l: l.s / (l.a + l.s), lambda x0, eps: eps - x0)  # noqa: E741


def heun(ode: OdeForm = SIGMA_ODE) -> Step:
    """Heun's second-order method, two evaluations per step; Euler's in the last step to s = 0 and where `ode.scale` is 0.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 1, uses `SIGMA_ODE`. Flows use `FLOW_ODE`, which is finite at a = 0.
    """

    def step(history: list[Estimate], to: Level, denoise: Denoise, _: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        euler = transition(x, x0, level, to)
        if to.s == 0 or ode.scale(level) == 0:
            return euler
        mean = (ode.slope(x, x0, level) + ode.slope(euler, denoise(euler, to), to)) / 2
        return ode.euler(x, mean, level, to)

    return step


def lms(order: int = 4, ode: OdeForm = SIGMA_ODE) -> Step:
    """Linear multistep (Adams-Bashforth on uneven timesteps), `order` at most 4, one evaluation per step.

    Liu et al. 2022 (arXiv 2202.09778) and k-diffusion's `sample_lms`, which uses `SIGMA_ODE`.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        if ode.scale(level) == 0:
            return transition(x, x0, level, to)
        past = [estimate for estimate in history[-order:] if ode.scale(estimate.level) > 0]
        start, end = ode.coordinate(level), ode.coordinate(to)
        nodes = torch.stack([(ode.coordinate(estimate.level) - start) / (end - start) for estimate in past])
        powers = torch.arange(len(past), dtype=nodes.dtype)
        # The weights that integrate every power of the coordinate over the step: sum_j w_j node_j^k = 1 / (k + 1).
        weights = torch.linalg.solve(nodes[None] ** powers[:, None], 1 / (powers + 1))
        slopes = (ode.slope(estimate.x, estimate.x0, estimate.level) for estimate in past)
        return ode.euler(x, _combine(weights, slopes), level, to)

    return step


def dpmpp_2m(eta: float = 0.0) -> Step:
    """DPM-Solver++(2M): x0 extrapolated linearly in log-SNR to the middle of the step; eta = 1 is the SDE form (2M SDE).

    Lu et al. 2022 (arXiv 2211.01095), algorithm 2 and eq. 16. The first step and a last step to s = 0 are first order.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        current = history[-1]
        x0 = current.x0
        if len(history) > 1 and to.s > 0:
            previous = history[-2]
            r = _lambda_step(current.level, to) / _lambda_step(previous.level, current.level)
            x0 = x0 + (r / 2).to(x0) * (x0 - previous.x0)
        return transition(current.x, x0, current.level, to, eta, next(noise) if eta else None)

    return step


def dpmpp_3m(eta: float = 0.0) -> Step:
    """DPM-Solver++(3M): x0 extrapolated by a parabola through three estimates; eta is 0 or 1 (3M SDE).

    The coefficients are those of k-diffusion's `dpmpp_3m_sde`; Gonzalez et al. 2023 (arXiv 2305.14267) derive such solvers.
    The error is about a quarter of 2M's, but the order is still 2, because the quadratic term has half of the weight that
    order 3 needs.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        current = history[-1]
        x0 = current.x0
        past = [estimate for estimate in history[-3:-1] if estimate.level.a > 0]
        if past and to.s > 0:
            h = _lambda_step(current.level, to)
            r0 = _lambda_step(past[-1].level, current.level) / h
            slope = _over(x0 - past[-1].x0, r0)
            h_eta = h * (1 + eta)
            phi1 = -torch.expm1(-h_eta)
            phi2 = 1 - phi1 / h_eta
            if len(past) == 2:
                r1 = _lambda_step(past[0].level, past[1].level) / h
                curvature = _over(slope - _over(past[1].x0 - past[0].x0, r1), r0 + r1)
                slope = slope + r0.to(x0) * curvature
                x0 = x0 - ((phi2 / h_eta - 0.5) / phi1).to(x0) * curvature
            x0 = x0 + (phi2 / phi1).to(x0) * slope
        return transition(current.x, x0, current.level, to, eta, next(noise) if eta else None)

    return step


def unipc(order: int = 2) -> Step:
    """UniPC with B(h) = e^h - 1 on x0, `order` 1 to 3. Zhao et al. 2023 (arXiv 2302.04867), algorithms 1 and 2.

    The corrector repeats the previous step with the latest estimate. It costs no further evaluation. Numbers of x that a
    constraint or guidance changed after the previous step are not corrected, because that would undo the change.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        usable = [estimate for estimate in history[-order - 1 :] if estimate.level.a > 0]
        if len(usable) > 1:
            previous, current = usable[-2:]
            past = usable[-order - 1 : -2]
            predicted, corrected = (
                transition(previous.x, _unipc_x0(past, previous, current.level, x0), previous.level, current.level)
                for x0 in (None, current.x0)
            )
            history[-1] = current._replace(x=torch.where(current.x == predicted, corrected, current.x))
        current = history[-1]
        past = usable[-order:-1] if to.s > 0 else []
        return transition(current.x, _unipc_x0(past, current, to, None), current.level, to)

    return step


def _unipc_x0(past: list[Estimate], current: Estimate, to: Level, x0_at_to: Tensor | None) -> Tensor:
    """UniPC's x0 for the step to level `to`, from earlier estimates and, in the corrector, the estimate at `to`."""
    if not past and x0_at_to is None:
        return current.x0
    h = _lambda_step(current.level, to)
    ratios = [-_lambda_step(estimate.level, current.level) / h for estimate in past]
    slopes = [_over(estimate.x0 - current.x0, ratio) for estimate, ratio in zip(past, ratios, strict=True)]
    if x0_at_to is not None:
        ratios.append(torch.ones_like(h))
        slopes.append(x0_at_to - current.x0)
    weights = torch.full((1,), 0.5, dtype=h.dtype)  # the paper's choice for one slope, whatever h
    if len(slopes) > 1:
        right_side, phi, factorial = [], torch.expm1(-h) / -h - 1, 1
        for k in range(len(slopes)):
            right_side.append(phi * factorial / torch.expm1(-h))
            factorial *= k + 2
            phi = phi / -h - 1 / factorial
        powers = torch.arange(len(slopes), dtype=h.dtype)
        weights = torch.linalg.solve(torch.stack(ratios)[None] ** powers[:, None], torch.stack(right_side))
    return current.x0 + _combine(weights, slopes)


def _combine(weights: Tensor, tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([weight.to(tensor) * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)


def _lambda_step(level: Level, to: Level) -> Tensor:
    """The step h in lambda = log(a / s), positive towards less noise."""
    return (to.logsnr - level.logsnr) / 2


def _over(difference: Tensor, ratio: Tensor) -> Tensor:
    return difference / ratio.to(difference)
