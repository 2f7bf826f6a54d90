"""The sampling loop, the only one: estimate the clean example, step to the walk's next level, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import Cond, rows
from diffusion_core.denoiser import Denoiser, Posterior, UncertainDenoiser
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.sampling.transition import renoise
from diffusion_core.schedules import Level


class Estimate(NamedTuple):
    """One visit of the walk: where, what x was there, and the clean example estimated from it."""

    level: Level
    x: Tensor  # [B, *S]
    x0: Tensor  # [B, *S]
    var: Tensor | None = None  # of x0 given x, if the denoiser tells


# The visits so far, the present one last (a corrector may replace it); the level to go to; the denoiser, should more
# evaluations be needed; fresh noise.
Step = Callable[[list[Estimate], Level, Callable[[Tensor, Level], Tensor], Iterator[Tensor]], Tensor]
Constrain = Callable[[Tensor, Level, Iterator[Tensor]], Tensor]  # x after a step, its level, fresh noise -> x

_MEMORY = 4  # visits that any solver looks back on


def sample(
    denoiser: Denoiser | UncertainDenoiser,
    x: Tensor,
    timesteps: Timesteps,
    step: Step,
    noise: Iterator[Tensor],
    cond: Cond | None = None,
    constrain: Constrain | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """x `[B, *S]` at the walk's first level carried to its last.

    Where the walk goes up, noise is added and the solver's memory is cleared. `progress(done, total)` is called after each
    step. The state keeps the type of x: give float64 for a long walk. Gradients flow through, if they are on.
    """

    def estimate(x: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        guess = denoiser(x, level, cond or {})
        return guess if isinstance(guess, Posterior) else (guess, None)

    def denoise(x: Tensor, level: Level) -> Tensor:
        return estimate(x, level)[0]

    history: list[Estimate] = []
    for done, (here, to) in enumerate(pairwise(timesteps), 1):
        if to.noisier(here):
            x = renoise(x, here, to, next(noise))
            history.clear()
        else:
            history = [*history[1 - _MEMORY :], Estimate(here, x, *estimate(x, here))]
            x = step(history, to, denoise, noise)
        if constrain is not None:
            x = constrain(x, to, noise)
        if progress is not None:
            progress(done, len(timesteps) - 1)
    return x


@torch.no_grad()
def generate(
    denoiser: Denoiser | UncertainDenoiser,
    timesteps: Timesteps,
    step: Step,
    shape: Sequence[int],
    seed: rng.Seed,
    ids: Tensor,
    cond: Cond | None = None,
    batch: int | None = None,
    constrain: Constrain | None = None,
    progress: Callable[[int, int], None] | None = None,
    noise: rng.Noise = rng.normal,
) -> Tensor:
    """Samples `[len(ids), *shape]` float32, sample i a function of (seed, ids[i], its conditions) and not of its batch.

    ids lie on the device to work on; cond has a row for each. The walk's first level is taken as pure noise, x = s * noise.
    `progress(done, total)` counts steps over all batches.
    """
    batch = batch or len(ids)
    parts = range(0, len(ids), batch)
    out = []
    for part, start in enumerate(parts):
        here = slice(start, start + batch)
        draws = rng.stream(shape, seed, ids[here], torch.float64, noise)
        x = timesteps[0].s.to(ids.device) * next(draws)

        def report(done: int, total: int, part: int = part) -> None:
            if progress is not None:
                progress(part * total + done, len(parts) * total)

        part_cond = rows(cond, here) if cond else None
        out.append(sample(denoiser, x, timesteps, step, draws, part_cond, constrain, report).float())
    return torch.cat(out)
