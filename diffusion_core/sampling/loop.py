"""The sampling loop, used by all samplers: estimate the clean example, step to the next level, repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import LATENT, Cond, rows
from diffusion_core.denoiser import Denoiser, Posterior, UncertainDenoiser
from diffusion_core.sampling.timesteps import Timesteps
from diffusion_core.sampling.transition import renoise, transition
from diffusion_core.schedules import Level


class Estimate(NamedTuple):
    """One evaluation of the denoiser: the level, x at this level, and the estimate of x0."""

    level: Level
    x: Tensor  # [B, *S]
    x0: Tensor  # [B, *S]
    var: Tensor | None = None  # of x0 given x, from an `UncertainDenoiser`
    share: Tensor | None = None  # see `Posterior`


Denoise = Callable[[Tensor, Level], Tensor]  # x, level -> x0_hat, with the conditions already applied
# (estimates so far, latest last; next level; denoiser for further evaluations; noise) -> x at the next level. A step may
# replace the latest estimate in the list.
Step = Callable[[list[Estimate], Level, Denoise, Iterator[Tensor]], Tensor]
Constrain = Callable[[Tensor, Level, Iterator[Tensor]], Tensor]  # (x after a step, its level, noise) -> x

_HISTORY = 4  # estimates that are kept; no solver uses more


def sample(
    denoiser: Denoiser | UncertainDenoiser,
    x: Tensor,
    timesteps: Timesteps,
    step: Step,
    noise: Iterator[Tensor],
    cond: Cond | None = None,
    constrain: Constrain | None = None,
    progress: Callable[[int, int], None] | None = None,
    fresh: bool = False,
) -> Tensor:
    """Carry x `[B, *S]` from the first timestep to the last, and return it.

    Where a timestep is noisier than the one before it, noise is added and the solver's history is cleared. After each step
    `constrain` may change x, and `progress(done, total)` is called. All arithmetic is in the dtype of x; use float64 for many
    steps. Gradients flow through the sampler if they are enabled. With `fresh` the denoiser gets new noise as condition LATENT
    in each step.
    """
    given = dict(cond or {})

    def estimate(x: Tensor, level: Level) -> Estimate:
        guess = denoiser(x, level, given)
        return Estimate(level, x, *guess) if isinstance(guess, Posterior) else Estimate(level, x, guess)

    def denoise(x: Tensor, level: Level) -> Tensor:
        return estimate(x, level).x0

    history: list[Estimate] = []
    for done, (level, to) in enumerate(pairwise(timesteps), 1):
        if to.noisier(level):
            x = renoise(x, level, to, next(noise))
            history.clear()
        else:
            if fresh:
                given[LATENT] = next(noise)
            history = [*history[1 - _HISTORY :], estimate(x, level)]
            x = step(history, to, denoise, noise)
        if constrain is not None:
            x = constrain(x, to, noise)
        if progress is not None:
            progress(done, len(timesteps) - 1)
    return x


def ancestral(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
    """DDPM's step with the variance of x0, if the denoiser gives one. Ho et al. 2020 (arXiv 2006.11239), eq. 11.

    `solvers.ddim(eta=1)` is the same; this one is a part of recipes whose losses are derived for it.
    """
    level, x, x0, var, share = history[-1]
    return transition(x, x0, level, to, 1.0, next(noise), var, share)


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
    initial: Callable[[Tensor], Tensor] | None = None,
    start: Tensor | None = None,
    codes: int | None = None,
    fresh: bool = False,
    prepare: Callable[[Tensor, Cond], Cond] | None = None,
    finish: Callable[[Tensor, Cond], Tensor] | None = None,
    start_noise: float = 1.0,
) -> Tensor:
    """Samples `[len(ids), *shape]` float32, computed in float64 `batch` at a time.

    Sample i is a function of (seed, ids[i], its conditions) and does not depend on its batch. ids lie on the device to compute
    on; cond has one row per id. The first timestep is treated as pure noise, x = s * noise, unless `initial` makes x of the
    noise, or clean examples `start` `[len(ids), *shape]` are given, x = a * start + s * noise. `progress(done, total)` counts
    steps over all batches. With `codes` samples are tokens below that number, int64; all are masked at first unless `initial`
    says otherwise, and noise has a number for each token and code. `fresh`: see `sample`. `prepare` makes a sample's conditions
    of noise and the given ones, `finish` a sample of x after the last step. `start_noise`: 0 if `start` has its noise already.
    """
    batch = batch or len(ids)
    begins = range(0, len(ids), batch)
    samples = []
    for index, begin in enumerate(begins):
        chunk = slice(begin, begin + batch)
        drawn = shape if codes is None else (*shape, codes)
        draws = rng.stream(drawn, seed, ids[chunk], torch.float64, noise)
        given = rows(cond, chunk) if cond else {}
        if prepare is not None:
            given = prepare(next(draws), given)
        if codes is not None and initial is None:
            x = torch.full((len(ids[chunk]), *shape), codes, device=ids.device)
        else:
            first = next(draws)
            x = timesteps[0].s.to(ids.device) * first if initial is None else initial(first)
            if start is not None:
                x = timesteps[0].corrupt(start[chunk].to(first), start_noise * first)

        def report(done: int, total: int, index: int = index) -> None:
            if progress is not None:
                progress(index * total + done, len(begins) * total)

        done = sample(denoiser, x, timesteps, step, draws, given, constrain, report, fresh)
        if finish is not None:
            done = finish(done, given)
        samples.append(done.float() if codes is None else done)
    return torch.cat(samples)
