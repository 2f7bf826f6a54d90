"""What is measured while training: loss per noise level, gradient noise scale, and the cost of a step in operations."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffusion_core import rng
from diffusion_core.conditioning import WEIGHT, Cond, rows
from diffusion_core.denoiser import Denoiser
from diffusion_core.recipe import Recipe
from diffusion_core.rng import Stream
from diffusion_core.schedules import Level
from diffusion_core.training import lr_schedule, parallel

if TYPE_CHECKING:
    from diffusion_core.training.trainer import Trainer


def evaluate(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    levels: Level,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Mean squared error of x0 over the examples `[N, *S]` at each of the levels `[L]`: `[L]` float64.

    The noise depends on `seed` and the example's index only, see `denoising_losses`.
    """
    return denoising_losses(denoiser, x0, cond, levels, rng.fold(seed, Stream.EVALUATION), batch).mean(1)


@torch.no_grad()
def denoising_losses(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    levels: Level,
    noise_seed: rng.Seed,
    batch: int = 256,
    recipe: Recipe | None = None,
) -> Tensor:
    """Mean squared error of x0 of each example `[N, *S]` at each of the levels `[L]`: `[L, N]` float64 on the CPU.

    Example i of any set gets the same noise at every level and in every call with this seed. Differences over training, and
    between training and held-out data, are therefore due to the model and the examples. Examples are corrupted as in the
    recipe's training; without a recipe, by normal noise. Condition `weight:x` weighs the coordinates. A recipe may measure
    something else by its `error`, such as the cross-entropy of tokens.
    """
    draw = recipe.noise if recipe is not None else rng.normal
    losses = torch.zeros(len(levels.a), len(x0), dtype=torch.float64)
    for start in range(0, len(x0), batch):
        part = slice(start, min(start + batch, len(x0)))
        ids = torch.arange(part.start, part.stop, device=x0.device)
        noise = draw(x0.shape[1:], noise_seed, ids)
        noise = noise.to(x0) if x0.is_floating_point() else noise
        for i in range(len(losses)):
            level = Level(levels.a[i], levels.s[i])
            if recipe is not None and recipe.error is not None:
                losses[i, part] = recipe.error(denoiser, x0[part], level, noise, rows(cond, part)).double().cpu()
                continue
            x = level.corrupt(x0[part], noise) if recipe is None else recipe.corrupt(x0[part], level, noise)
            error = (denoiser(x, level, rows(cond, part)) - x0[part]).square()
            if WEIGHT in cond:
                error = error * cond[WEIGHT][part]
            losses[i, part] = error.flatten(1).mean(1).double().cpu()
    return losses


class NoiseScale(NamedTuple):
    """Unbiased estimates of the squared length of the true gradient and of the variance (trace) of one image's gradient."""

    signal: float
    noise: float

    @property
    def images(self) -> float:
        """The batch at which signal and noise are equal; a larger batch brings little. Infinite without signal."""
        return self.noise / self.signal if self.signal > 0 else float("inf")


def noise_scale(trainer: Trainer, pieces: int = 8) -> NoiseScale | None:
    """The gradient noise scale at the current weights, from the next batch cut into pieces; None if it cannot be cut.

    With g_k the gradients of K pieces of b images and g their mean: E|g|^2 = |G|^2 + S / (K b), E|g_k|^2 = |G|^2 + S / b.
    McCandlish et al. 2018 (arXiv 1812.06162), appendix A.1. Costs as much as one step; changes neither weights nor optimiser.
    """
    batch = lr_schedule.batch_size(trainer.config, trainer.nimg)
    counts = [k for k in range(2, pieces + 1) if batch % (k * trainer.world) == 0]
    if not counts:
        return None
    count = counts[-1]
    size = batch // count
    sums = [torch.zeros_like(parallel.local_shard(p)) for p in trainer.parameters.values()]
    squares = 0.0
    for k in range(count):
        trainer.zero_gradients()
        with _uncompiled(trainer):
            trainer.gradient(trainer.nimg + k * size, size)
        gradients = [parallel.local_shard(p.grad) for p in trainer.parameters.values() if p.grad is not None]
        squares += _square(gradients, trainer) / count
        torch._foreach_add_(sums, gradients, alpha=1 / count)
    trainer.zero_gradients()
    mean_square = _square(sums, trainer)  # of the mean gradient
    noise = (squares - mean_square) / (1 / size - 1 / (count * size))
    return NoiseScale((count * mean_square - squares) / (count - 1), noise)


def _square(tensors: list[Tensor], trainer: Trainer) -> float:
    """Squared norm of the gradient over all ranks."""
    value = torch.stack([t.double().square().sum() for t in tensors]).sum()
    return float(parallel.all_reduce_sum(value) if trainer.compute.sharded else value)


def _uncompiled(trainer: Trainer) -> AbstractContextManager[object]:
    """A context without compilation: odd batch sizes would recompile, and a compiled network's operations are not counted."""
    return torch.compiler.set_stance("force_eager") if trainer.compute.compile else nullcontext()


def flops_per_image(trainer: Trainer) -> float:
    """Floating-point operations of forward and backward pass for one image: matrix products, convolutions, attention.

    Counted on the next image of each rank. Recomputed activations count as well.
    """
    count = trainer.world
    with _uncompiled(trainer), FlopCounterMode(display=False) as counter:
        trainer.gradient(trainer.nimg, count)
    trainer.zero_gradients()
    return float(counter.get_total_flops() * trainer.world / count)
