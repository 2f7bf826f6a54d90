"""Distillation: a student that needs fewer steps than its teacher, trained by the ordinary loop with another loss.

Each gives a `loss` for a `Recipe`: the regression target comes from the teacher's steps instead of from the data.
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
    """The clean example with which one `transition` from x at `level` to `to` ends in `after`: the inverse of a DDIM step."""
    keep, pull = Level(to.s / level.s, to.a - to.s / level.s * level.a).like(x)
    return (after - keep * x) / pull


def progressive(teacher: Denoiser, timesteps: Timesteps) -> Loss:
    """One step of the student is two DDIM steps of the teacher on these timesteps, an even number of steps.

    The level drawn in training is replaced by the nearest level at which a step of the student starts. The student samples
    with `ddim` on `timesteps[::2]`. Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2. Raises ValueError if the number of
    steps is odd.
    """
    if len(timesteps) % 2 == 0:
        raise ValueError(f"the teacher's timesteps must be an even number of steps, got {len(timesteps) - 1}")
    starts, middles, ends = _table(timesteps[:-1:2]), _table(timesteps[1::2]), _table(timesteps[2::2])

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        index = _nearest(starts, level, x0)
        start, middle, end = (_at(table, index) for table in (starts, middles, ends))
        x = start.corrupt(x0, noise)
        with torch.no_grad():
            half = transition(x, teacher(x, start, cond), start, middle)
            target = implied_x0(x, transition(half, teacher(half, middle, cond), middle, end), start, end)
        return weight(start).to(x0) * (denoiser(x, start, cond) - target).square().flatten(1).mean(1)

    return loss


def direct(teacher: Denoiser, timesteps: Timesteps, times: int) -> Loss:
    """One step of the student is `times` Heun steps of the teacher on these timesteps; a single round of distillation.

    The student samples with `ddim` on `timesteps[::times]`. With one step from noise to data it is the knowledge
    distillation of Luhman & Luhman 2021 (arXiv 2101.02388). Costs 2 `times` evaluations of the teacher an image. Raises
    ValueError if the number of steps is not a multiple of `times`.
    """
    if (len(timesteps) - 1) % times:
        raise ValueError(f"{len(timesteps) - 1} steps of the teacher do not divide into steps of {times}")
    tables = [_table([timesteps[i + j] for i in range(0, len(timesteps) - 1, times)]) for j in range(times + 1)]

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        index = _nearest(tables[0], level, x0)
        start, *between = (_at(table, index) for table in tables)
        x = at = start.corrupt(x0, noise)
        with torch.no_grad():
            for level_from, level_to in pairwise([start, *between]):
                at = _heun(teacher, at, level_from, level_to, cond)
            target = implied_x0(x, at, start, between[-1])
        return weight(start).to(x0) * (denoiser(x, start, cond) - target).square().flatten(1).mean(1)

    return loss


class Consistency(torch.nn.Module):
    """Consistency distillation: at each level the student's target is its slow copy's output one teacher step later.

    At the last noisy level the target is x / a, which an EDM-preconditioned student gives by construction. It samples with
    `solvers.consistency_step` in one step or more. The slow copy is an exponential average with this decay per step, which the
    training loop updates after each step (`end_step`). Song et al. 2023 (arXiv 2303.01469), algorithm 2, with Heun steps.
    """

    def __init__(self, teacher: Denoiser, student: Preconditioned, timesteps: Timesteps, decay: float = 0.95) -> None:
        super().__init__()
        self._teacher = (teacher,)  # tuples keep both out of this module's parameters
        self._student = (student,)
        self.slow = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        noisy = [level for level in timesteps if level.s > 0]
        self.starts, self.ends = _table(noisy[:-1]), _table(noisy[1:])

    def forward(
        self, denoiser: Preconditioned, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        with torch.no_grad():
            index = _nearest(self.starts, level, x0)
            start, after = _at(self.starts, index), _at(self.ends, index)
            x = start.corrupt(x0, noise)
            x_after = _heun(self._teacher[0], x, start, after, cond)
            last = expand_like(index == len(self.ends.a) - 1, x).bool()
            target = torch.where(last, x_after / expand_like(after.a, x), self.slow(x_after, after, cond))
        error: Tensor = denoiser(x, start, cond) - target
        return weight(start).to(x0) * error.square().flatten(1).mean(1)

    def begin_step(self, nimg: int) -> None:
        """Nothing is collected: see `end_step`."""

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the slow copy towards the student."""
        for slow, fast in zip(self.slow.parameters(), self._student[0].parameters(), strict=True):
            slow.lerp_(fast, 1 - self.decay)


def _heun(teacher: Denoiser, x: Tensor, start: Level, after: Level, cond: Cond) -> Tensor:
    """A Heun step in sigma, each row with levels of its own; an Euler step where it ends without noise."""
    x0 = teacher(x, start, cond)
    guess = transition(x, x0, start, after)
    clean = after.s == 0
    # Any noisy level will do where the step ends clean: the result is not used there.
    safe = Level(after.a, torch.where(clean, start.s, after.s))
    x0_after = teacher(guess, safe, cond)
    a, s = start.like(x)
    b, r = safe.like(x)
    mean = ((x - a * x0) / s + (guess - b * x0_after) / r) / 2
    return torch.where(expand_like(clean, x).bool(), guess, b * (x / a + (r / b - s / a) * mean))


def _table(levels: Timesteps) -> Level:
    return Level(torch.stack([level.a for level in levels]), torch.stack([level.s for level in levels]))


def _nearest(table: Level, level: Level, x: Tensor) -> Tensor:
    """For each of level's rows `[B]`, the index of the table's level with the nearest angle, on x's device."""
    return (table.angle.to(x.device)[None] - level.angle.to(x.device)[:, None]).abs().argmin(1)


def _at(table: Level, index: Tensor) -> Level:
    """The table's levels at these indices `[B]`, on the indices' device, so that no step waits for a transfer."""
    return Level(table.a.to(index.device)[index], table.s.to(index.device)[index])
