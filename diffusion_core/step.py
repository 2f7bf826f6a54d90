"""Solvers. Each says how to combine the clean estimates at hand; the move from level to level is always the same.

Because the combination's weights sum to 1 and the move keeps mean and variance, every solver here is exact on one-point data
for any walk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from diffusion_core.level import Level
from diffusion_core.move import move, noise_of
from diffusion_core.sample import Estimate, Step

Denoise = Callable[[Tensor, Level], Tensor]


def ddim(eta: float = 0.0) -> Step:
    """The first-order step: DDIM (Euler's in the sigma and in the flow chart) at eta = 0, DDPM's ancestral step at eta = 1."""

    def step(history: Sequence[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1]
        return move(here.x, here.x0, here.level, to, eta, next(noise) if eta else None)

    return step


class Chart(NamedTuple):
    """A gauge in which noisy data is a straight line: x / scale has the slope `direction` in `coordinate`.

    In every chart Euler's step is DDIM; they differ in what a second-order method averages.
    """

    scale: Callable[[Level], Tensor]
    coordinate: Callable[[Level], Tensor]
    direction: Callable[[Tensor, Tensor], Tensor]  # (x0, eps) -> slope


SIGMA = Chart(lambda l: l.a, lambda l: l.s / l.a, lambda x0, eps: eps)  # noqa: E741
FLOW = Chart(lambda l: l.a + l.s, lambda l: l.s / (l.a + l.s), lambda x0, eps: eps - x0)  # noqa: E741


def heun(chart: Chart = SIGMA) -> Step:
    """Heun's second-order step, two evaluations; Euler's at the last step to a clean level and where the chart is infinite.

    Karras et al. 2022 (arXiv 2206.00364), algorithm 1, is the sigma chart; flows use theirs, which is finite at a = 0.
    """

    def slope(x: Tensor, x0: Tensor, level: Level) -> Tensor:
        return chart.direction(x0, noise_of(x, x0, level))

    def step(history: Sequence[Estimate], to: Level, denoise: Denoise, _: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1]
        euler = move(x, x0, level, to)
        if to.s == 0 or chart.scale(level) == 0:
            return euler
        mean = (slope(x, x0, level) + slope(euler, denoise(euler, to), to)) / 2
        distance = (chart.coordinate(to) - chart.coordinate(level)).to(x)
        return chart.scale(to).to(x) * (x / chart.scale(level).to(x) + distance * mean)

    return step


def dpmpp_2m(eta: float = 0.0) -> Step:
    """DPM-Solver++(2M): the estimate extrapolated linearly in log-SNR to the middle of the step; with eta = 1, its SDE form.

    Lu et al. 2022 (arXiv 2211.01095), algorithm 2 and eq. 16. First order at the first step and at the last to a clean level.
    """

    def step(history: Sequence[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1]
        x0 = here.x0
        if len(history) > 1 and to.s > 0:
            before = history[-2]
            ahead = (to.logsnr - here.level.logsnr) / (here.level.logsnr - before.level.logsnr)
            x0 = x0 + (ahead / 2).to(x0) * (x0 - before.x0)
        return move(here.x, x0, here.level, to, eta, next(noise) if eta else None)

    return step
