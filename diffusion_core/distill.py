"""Distillation: a student that needs fewer steps than its teacher, trained by the ordinary loop with another loss.

Both give a `loss` for a `Recipe`: the target of the regression comes from the teacher's moves instead of from the data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_core.cond import Cond
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.level import Level, spread
from diffusion_core.move import move
from diffusion_core.objective import Weight
from diffusion_core.walk import Walk

Loss = Callable[..., Tensor]


def implied(x: Tensor, after: Tensor, level: Level, to: Level) -> Tensor:
    """The clean example with which one `move` from x at `level` ends in `after` at `to`: the move's inverse."""
    keep, pull = Level(to.s / level.s, to.a - to.s / level.s * level.a).like(x)
    return (after - keep * x) / pull


def progressive(teacher: Denoiser, walk: Walk) -> Loss:
    """One step of the student = two DDIM steps of the teacher, on a walk of the teacher's levels (an even number of steps).

    The level drawn in training is replaced by the student's starting level with the same rank. The student samples with `ddim`
    on `walk[::2]`. Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2. Raises ValueError if the steps are odd.
    """
    if len(walk) % 2 == 0:
        raise ValueError(f"the teacher's walk must have an even number of steps, got {len(walk) - 1}")
    starts, middles, ends = _table(walk[:-1:2]), _table(walk[1::2]), _table(walk[2::2])

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        rank = _nearest(starts, level)
        here, middle, end = (table.rows(rank) for table in (starts, middles, ends))
        x = here.corrupt(x0, noise)
        with torch.no_grad():
            half = move(x, teacher(x, here, cond), here, middle)
            target = implied(x, move(half, teacher(half, middle, cond), middle, end), here, end)
        return weight(here).to(x0) * (denoiser(x, here, cond) - target).square().flatten(1).mean(1)

    return loss


class Consistency(torch.nn.Module):
    """Consistency distillation: at each level the student answers what its slow copy answers one teacher step later.

    At the walk's last noisy level the answer is x / a itself, which an EDM-preconditioned student says anyway. It samples with
    `step.redraw` in one step or more. The slow copy is an exponential average with this decay a step. Song et al. 2023 (arXiv
    2303.01469), algorithm 2, with Heun steps.
    """

    def __init__(self, teacher: Denoiser, student: Preconditioned, walk: Walk, decay: float = 0.95) -> None:
        super().__init__()
        self._teacher = (teacher,)  # in a tuple, as it is not ours to train or to save
        self.slow = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        noisy = [level for level in walk if level.s > 0]
        self.starts, self.ends = _table(noisy[:-1]), _table(noisy[1:])

    def forward(
        self, denoiser: Preconditioned, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond
    ) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.slow.parameters(), denoiser.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.decay)
            rank = _nearest(self.starts, level)
            here, after = self.starts.rows(rank), self.ends.rows(rank)
            x = here.corrupt(x0, noise)
            x_after = _heun(self._teacher[0], x, here, after, cond)
            last = spread(rank == len(self.ends.a) - 1, x).bool()
            target = torch.where(last, x_after / spread(after.a, x), self.slow(x_after, after, cond))
        return weight(here).to(x0) * (denoiser(x, here, cond) - target).square().flatten(1).mean(1)


def _heun(teacher: Denoiser, x: Tensor, here: Level, after: Level, cond: Cond) -> Tensor:
    x0 = teacher(x, here, cond)
    guess = move(x, x0, here, after)
    x0_after = teacher(guess, after, cond)
    a, s = here.like(x)
    b, r = after.like(x)
    mean = ((x - a * x0) / s + (guess - b * x0_after) / r) / 2
    return b * (x / a + (r / b - s / a) * mean)


def _table(levels: Walk) -> Level:
    return Level(torch.stack([level.a for level in levels]), torch.stack([level.s for level in levels]))


def _nearest(table: Level, level: Level) -> Tensor:
    """For each of level's rows `[B]`, the index of the table's level with the nearest angle."""
    return (table.angle.to(level.a)[None] - level.angle[:, None]).abs().argmin(1)
