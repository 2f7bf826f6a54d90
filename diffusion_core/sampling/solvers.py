"""Solvers. Each says how to combine the clean estimates at hand; the move from level to level is always the same.

Because the combination's weights sum to 1 and the move keeps mean and variance, every solver here is exact on one-point data
for any walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_core.sampling.loop import Estimate, Step
from diffusion_core.sampling.transition import noise_of, transition
from diffusion_core.schedules import Level

Denoise = Callable[[Tensor, Level], Tensor]


def ddim(eta: float = 0.0) -> Step:
    """The first-order step: DDIM (Euler's in the sigma and in the flow chart) at eta = 0, DDPM's ancestral step at eta = 1."""

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1]
        return transition(here.x, here.x0, here.level, to, eta, next(noise) if eta else None, here.var)

    return step


def consistency_step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
    """The estimate with wholly fresh noise: consistency sampling. Song et al. 2023 (arXiv 2303.01469), algorithm 1."""
    return to.corrupt(history[-1].x0, next(noise).to(history[-1].x0))


class OdeForm(NamedTuple):
    """A gauge in which noisy data is a straight line: x / scale has the slope `direction` in `coordinate`.

    In every chart Euler's step is DDIM; they differ in what a second-order method averages.
    """

    scale: Callable[[Level], Tensor]
    coordinate: Callable[[Level], Tensor]
    direction: Callable[[Tensor, Tensor], Tensor]  # (x0, eps) -> slope

    def slope(self, x: Tensor, x0: Tensor, level: Level) -> Tensor:
        """The slope `[B, *S]` at x `[B, *S]`, if the clean example is x0."""
        return self.direction(x0, noise_of(x, x0, level))

    def straight(self, x: Tensor, slope: Tensor, level: Level, to: Level) -> Tensor:
        """x at `level` carried to `to` along the slope."""
        scale, distance = self.scale(to), self.coordinate(to) - self.coordinate(level)
        return (scale / self.scale(level)).to(x) * x + (scale * distance).to(x) * slope


SIGMA_ODE = OdeForm(lambda l: l.a, lambda l: l.s / l.a, lambda x0, eps: eps)  # noqa: E741
FLOW_ODE = OdeForm(lambda l: l.a + l.s, lambda l: l.s / (l.a + l.s), lambda x0, eps: eps - x0)  # noqa: E741


def heun(ode: OdeForm = SIGMA_ODE) -> Step:
    """Heun's second-order step, two evaluations; Euler's at the last step to a clean level and where `ode` is infinite.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 1, uses `SIGMA_ODE`; flows use `FLOW_ODE`, which is finite at a = 0.
    """

    def step(history: list[Estimate], to: Level, denoise: Denoise, _: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        euler = transition(x, x0, level, to)
        if to.s == 0 or ode.scale(level) == 0:
            return euler
        mean = (ode.slope(x, x0, level) + ode.slope(euler, denoise(euler, to), to)) / 2
        return ode.straight(x, mean, level, to)

    return step


def lms(order: int = 4, ode: OdeForm = SIGMA_ODE) -> Step:
    """Linear multistep (Adams-Bashforth on the walk's own uneven levels), `order` at most 4, one evaluation a step.

    Liu et al. 2022 (arXiv 2202.09778) and k-diffusion's `sample_lms`, which uses `SIGMA_ODE`.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        if ode.scale(level) == 0:
            return transition(x, x0, level, to)
        past = [visit for visit in history[-order:] if ode.scale(visit.level) > 0]
        here, there = ode.coordinate(level), ode.coordinate(to)
        nodes = torch.stack([(ode.coordinate(visit.level) - here) / (there - here) for visit in past])
        powers = torch.arange(len(past), dtype=nodes.dtype)
        # The weights that integrate every power of the coordinate over the step: sum_j w_j node_j^k = 1 / (k + 1).
        weights = torch.linalg.solve(nodes[None] ** powers[:, None], 1 / (powers + 1))
        slopes = (ode.slope(visit.x, visit.x0, visit.level) for visit in past)
        return ode.straight(x, _combine(weights, slopes), level, to)

    return step


def dpmpp_2m(eta: float = 0.0) -> Step:
    """DPM-Solver++(2M): the estimate extrapolated linearly in log-SNR to the middle of the step; eta = 1 is its SDE form.

    Lu et al. 2022 (arXiv 2211.01095), algorithm 2 and eq. 16. First order at the first step and at the last to a clean level.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1]
        x0 = here.x0
        if len(history) > 1 and to.s > 0:
            before = history[-2]
            ahead = _gap(here.level, to) / _gap(before.level, here.level)
            x0 = x0 + (ahead / 2).to(x0) * (x0 - before.x0)
        return transition(here.x, x0, here.level, to, eta, next(noise) if eta else None)

    return step


def dpmpp_3m(eta: float = 0.0) -> Step:
    """DPM-Solver++(2M) with three estimates instead of two, a parabola in log-SNR; eta is 0 or 1 (3M SDE).

    Gonzalez et al. 2023 (arXiv 2305.14267) derive such solvers; the coefficients are those of k-diffusion's `dpmpp_3m_sde`. Its
    error is a quarter of 2M's, its order still 2: the parabola's bend has half of the weight that order 3 needs.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1]
        x0 = here.x0
        past = [visit for visit in history[-3:-1] if visit.level.a > 0]
        if past and to.s > 0:
            h = _gap(here.level, to)
            first = _gap(past[-1].level, here.level) / h
            slope = _over(x0 - past[-1].x0, first)
            h_eta = h * (1 + eta)
            phi1 = -torch.expm1(-h_eta)
            phi2 = 1 - phi1 / h_eta
            if len(past) == 2:
                second = _gap(past[0].level, past[1].level) / h
                bend = _over(slope - _over(past[1].x0 - past[0].x0, second), first + second)
                slope = slope + first.to(x0) * bend
                x0 = x0 - ((phi2 / h_eta - 0.5) / phi1).to(x0) * bend
            x0 = x0 + (phi2 / phi1).to(x0) * slope
        return transition(here.x, x0, here.level, to, eta, next(noise) if eta else None)

    return step


def unipc(order: int = 2) -> Step:
    """UniPC with B(h) = e^h - 1 on the clean estimate: each new estimate first corrects the step that led to it.

    Zhao et al. 2023 (arXiv 2302.04867), `order` 1 to 3. The corrector costs no evaluation.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        usable = [visit for visit in history[-order - 1 :] if visit.level.a > 0]
        if len(usable) > 1:
            before, here = usable[-2:]
            corrected = _unified(usable[-order - 1 : -2], before, here.level, here.x0)
            history[-1] = here._replace(x=transition(before.x, corrected, before.level, here.level))
        here = history[-1]
        past = usable[-order:-1] if to.s > 0 else []
        return transition(here.x, _unified(past, here, to, None), here.level, to)

    return step


def _unified(past: list[Estimate], here: Estimate, to: Level, ahead: Tensor | None) -> Tensor:
    """UniPC's estimate for the step here -> to out of earlier visits and, if known, the estimate at `to`."""
    if not past and ahead is None:
        return here.x0
    h = _gap(here.level, to)
    ratios = [-_gap(visit.level, here.level) / h for visit in past]
    slopes = [_over(visit.x0 - here.x0, ratio) for visit, ratio in zip(past, ratios, strict=True)]
    if ahead is not None:
        ratios.append(torch.ones_like(h))
        slopes.append(ahead - here.x0)
    weights = torch.full((1,), 0.5, dtype=h.dtype)  # the paper's choice for one slope, whatever h
    if len(slopes) > 1:
        sides, phi, factorial = [], torch.expm1(-h) / -h - 1, 1
        for k in range(len(slopes)):
            sides.append(phi * factorial / torch.expm1(-h))
            factorial *= k + 2
            phi = phi / -h - 1 / factorial
        powers = torch.arange(len(slopes), dtype=h.dtype)
        weights = torch.linalg.solve(torch.stack(ratios)[None] ** powers[:, None], torch.stack(sides))
    return here.x0 + _combine(weights, slopes)


def _combine(weights: Tensor, parts: Iterable[Tensor]) -> Tensor:
    return torch.stack([weight.to(part) * part for weight, part in zip(weights, parts, strict=True)]).sum(0)


def _gap(level: Level, to: Level) -> Tensor:
    """The step in half log-SNR, positive towards less noise."""
    return (to.logsnr - level.logsnr) / 2


def _over(difference: Tensor, ratio: Tensor) -> Tensor:
    return difference / ratio.to(difference)
