"""Distillation: a student that needs fewer steps than its teacher, trained by the ordinary loop with another loss.

Each gives a `loss` for a `Recipe`: the target of the regression comes from the teacher's moves instead of from the data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.losses import Weight
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.sampling.transition import transition
from diffusion_core.schedules import Level, expand_like

Loss = Callable[..., Tensor]


def implied_x0(x: Tensor, after: Tensor, level: Level, to: Level) -> Tensor:
    """The clean example with which one `transition` from x at `level` ends in `after` at `to`: the move's inverse."""
    keep, pull = Level(to.s / level.s, to.a - to.s / level.s * level.a).like(x)
    return (after - keep * x) / pull


def progressive(teacher: Denoiser, timesteps: Timesteps) -> Loss:
    """One step of the student = two DDIM steps of the teacher, on a walk of the teacher's levels (an even number of steps).

    The level drawn in training is replaced by the student's starting level with the same rank. The student samples with `ddim`
    on `timesteps[::2]`. Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2. Raises ValueError if the steps are odd.
    """
    if len(timesteps) % 2 == 0:
        raise ValueError(f"the teacher's walk must have an even number of steps, got {len(timesteps) - 1}")
    starts, middles, ends = _table(timesteps[:-1:2]), _table(timesteps[1::2]), _table(timesteps[2::2])

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        rank = _nearest(starts, level, x0)
        here, middle, end = (_at(table, rank) for table in (starts, middles, ends))
        x = here.corrupt(x0, noise)
        with torch.no_grad():
            half = transition(x, teacher(x, here, cond), here, middle)
            target = implied_x0(x, transition(half, teacher(half, middle, cond), middle, end), here, end)
        return weight(here).to(x0) * (denoiser(x, here, cond) - target).square().flatten(1).mean(1)

    return loss


def direct(teacher: Denoiser, timesteps: Timesteps, times: int) -> Loss:
    """One step of the student = `times` Heun steps of the teacher, on a walk of the teacher's levels: one round, however many.

    The student samples with `ddim` on `timesteps[::times]`. From noise to data in one step it is the knowledge distillation of
    Luhman & Luhman 2021 (arXiv 2101.02388). Costs 2 `times` evaluations of the teacher an image. Raises ValueError if the
    walk's steps are no multiple of `times`.
    """
    if (len(timesteps) - 1) % times:
        raise ValueError(f"{len(timesteps) - 1} steps of the teacher do not divide into steps of {times}")
    tables = [_table([timesteps[i + j] for i in range(0, len(timesteps) - 1, times)]) for j in range(times + 1)]

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        rank = _nearest(tables[0], level, x0)
        here, *between = (_at(table, rank) for table in tables)
        x = at = here.corrupt(x0, noise)
        with torch.no_grad():
            for last, to in pairwise([here, *between]):
                at = _heun(teacher, at, last, to, cond)
            target = implied_x0(x, at, here, between[-1])
        return weight(here).to(x0) * (denoiser(x, here, cond) - target).square().flatten(1).mean(1)

    return loss


class Consistency(torch.nn.Module):
    """Consistency distillation: at each level the student answers what its slow copy answers one teacher step later.

    At the walk's last noisy level the answer is x / a itself, which an EDM-preconditioned student says anyway. It samples with
    `solvers.consistency_step` in one step or more. The slow copy is an exponential average with this decay a step. Song et al.
    2023 (arXiv 2303.01469), algorithm 2, with Heun steps.
    """

    def __init__(self, teacher: Denoiser, student: Preconditioned, timesteps: Timesteps, decay: float = 0.95) -> None:
        super().__init__()
        self._teacher = (teacher,)  # in a tuple, as it is not ours to train or to save
        self.slow = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        noisy = [level for level in timesteps if level.s > 0]
        self.starts, self.ends = _table(noisy[:-1]), _table(noisy[1:])

    def forward(
        self, denoiser: Preconditioned, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), denoiser.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.decay)
            rank = _nearest(self.starts, level, x0)
            here, after = _at(self.starts, rank), _at(self.ends, rank)
            x = here.corrupt(x0, noise)
            x_after = _heun(self._teacher[0], x, here, after, cond)
            last = expand_like(rank == len(self.ends.a) - 1, x).bool()
            target = torch.where(last, x_after / expand_like(after.a, x), self.slow(x_after, after, cond))
        return weight(here).to(x0) * (denoiser(x, here, cond) - target).square().flatten(1).mean(1)


def _heun(teacher: Denoiser, x: Tensor, here: Level, after: Level, cond: Cond) -> Tensor:
    """A Heun step in the sigma chart, a row each its own; Euler's where it ends clean."""
    x0 = teacher(x, here, cond)
    guess = transition(x, x0, here, after)
    ends = after.s == 0
    safe = Level(after.a, torch.where(ends, here.s, after.s))  # any noisy level, where the result is not used
    x0_after = teacher(guess, safe, cond)
    a, s = here.like(x)
    b, r = safe.like(x)
    mean = ((x - a * x0) / s + (guess - b * x0_after) / r) / 2
    return torch.where(expand_like(ends, x).bool(), guess, b * (x / a + (r / b - s / a) * mean))


def _table(levels: Timesteps) -> Level:
    return Level(torch.stack([level.a for level in levels]), torch.stack([level.s for level in levels]))


def _nearest(table: Level, level: Level, x: Tensor) -> Tensor:
    """For each of level's rows `[B]`, the index of the table's level with the nearest angle, on x's device."""
    return (table.angle.to(x.device)[None] - level.angle.to(x.device)[:, None]).abs().argmin(1)


def _at(table: Level, rank: Tensor) -> Level:
    """The table's levels of these indices `[B]`, on their device, so that no step waits for the other one."""
    return Level(table.a.to(rank.device)[rank], table.s.to(rank.device)[rank])
