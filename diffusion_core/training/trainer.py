"""The training loop, the only one. Its clock is images seen; all it does is a function of (weights, seed, images seen).

Image number i of the run decides which example is shown (`order`), at which level, with what noise, and whether its
conditions are withheld. Rank r of W takes its slice of the total batch, in micro-batches where memory is short, so the
batches are the same for every W, and stopping leaves no trace.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.conditioning import Cond, drop, to
from diffusion_core.denoiser import Preconditioned
from diffusion_core.recipe import Recipe
from diffusion_core.rng import Stream
from diffusion_core.schedules import Level
from diffusion_core.training import compute as computing
from diffusion_core.training import data_order, joint_objective, lr_schedule, parallel
from diffusion_core.training.compute import Compute
from diffusion_core.training.ema import Average, Decay, halflife
from diffusion_core.training.lr_schedule import TrainConfig as TrainConfig
from diffusion_core.training.monitoring import evaluate as evaluate

Data = Callable[[Tensor], tuple[Tensor, Cond]]  # indices [B] -> examples [B, *S] and their conditions

# Augmentation: (examples, conditions, seed, image numbers [B]) -> the same, changed as a function of seed and image number.
Transform = Callable[[Tensor, Cond, int, Tensor], tuple[Tensor, Cond]]


class Step(NamedTuple):
    """What one step saw: the images seen after it, its mean loss over all ranks, and this rank's levels and losses."""

    nimg: int
    loss: float
    level: Level  # [B / W]
    losses: Tensor  # [B / W]
    stop: bool = False  # some rank was asked to stop (`Trainer.stop`): all ranks read the same here


class Diverged(ArithmeticError):
    """A loss or a gradient is not finite. `examples`: the indices of those whose loss is not, or of the whole batch."""

    def __init__(self, sentence: str, examples: list[int]) -> None:
        super().__init__(sentence)
        self.examples = examples


class _Seen(NamedTuple):
    """What this rank saw of a batch: indices, uniform draws, levels, losses, losses over their importance; `[B / W]` each."""

    examples: Tensor
    u: Tensor
    a: Tensor
    s: Tensor
    losses: Tensor
    weighted: Tensor


class Trainer:
    """Trains a denoiser in place with AdamW; `averages` maps a name to the decay of a running average of the weights.

    data gives the examples of indices below n, transform augments them. Under `torch.distributed` every rank makes the same
    Trainer. Raises ValueError if a batch does not divide among the ranks.
    """

    def __init__(
        self,
        denoiser: Preconditioned,
        recipe: Recipe,
        config: TrainConfig,
        data: Data,
        n: int,
        averages: Mapping[str, Decay] | None = None,
        transform: Transform | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.rank, self.world = parallel.ranks()
        for batch in (config.batch, *(batch for _, batch in config.batch_growth)):
            if batch % self.world:
                raise ValueError(f"a batch of {batch} does not divide among {self.world} ranks")
        self.denoiser = denoiser
        self.recipe = recipe
        self.config = config
        self.data = data
        self.transform = transform
        self.compute = compute or Compute()
        self.n = n
        self.nimg = 0
        self.stop = False  # set it (from a signal handler, say) and the next step tells all ranks
        self.data_wait_seconds = 0.0  # seconds spent waiting for examples
        self.device = next(denoiser.parameters()).device
        self.learned = joint_objective.trained_modules(denoiser, recipe).to(self.device)
        self.compile_warning = computing.prepare(denoiser, self.compute, self.device)  # what could not be done as asked
        self.channels_last = computing.has_convolutions(denoiser)
        self._blank = copy.deepcopy(denoiser).cpu() if self.compute.sharded else denoiser
        self.together = self.world > 1 or self.compute.sharded  # gradients are then means over the ranks
        self.objective: nn.Module = joint_objective.Objective(self.learned, recipe, self.together)
        if self.together:
            self.objective = parallel.parallelise(self.objective, self.device, self.compute.sharded)
        self.parameters = {k: p for k, p in self.learned.named_parameters() if p.requires_grad}
        if not self.compute.sharded:
            for (
                parameter
            ) in self.parameters.values():  # a part that the batch does not touch has a gradient all the same
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )
        decays = averages or {"ema": halflife(config.ema_halflife_images, config.ema_warmup)}
        self.averages = {name: Average(self.parameters, decay) for name, decay in decays.items()}

    @property
    def done(self) -> bool:
        """Whether the run has seen all its images."""
        return self.nimg >= self.config.images

    def learning_rate(self) -> float:
        """The learning rate of the step at hand."""
        return lr_schedule.learning_rate(self.config, self.nimg)

    def upcoming(self) -> Iterator[Tensor]:
        """The indices of this rank's micro-batches from here to the end, for a loader that reads ahead."""
        for nimg, batch in lr_schedule.steps(self.config, self.nimg):
            for ids in self._micro_batches(nimg, batch):
                yield self._examples(ids)

    def step(self) -> Step:
        """One step on the next batch; raises Diverged if loss or gradient is not finite, before any weight is changed."""
        batch = lr_schedule.batch_size(self.config, self.nimg)
        self.zero_gradients()
        seen = self.gradient(self.nimg, batch)
        sums = torch.stack([seen.weighted.sum() / batch, seen.weighted.new_tensor(float(self.stop))])
        parallel.all_reduce_sum(sums)
        norm = parallel.full_tensor(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.grad_clip))
        loss, asked, length = torch.stack([*sums, norm.to(sums)]).tolist()  # the only wait for the device
        if not (math.isfinite(loss) and math.isfinite(length)):
            raise self._diverged(seen, length)

        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.step()
        self.nimg += batch
        if self.recipe.importance:
            self.recipe.importance.update(parallel.all_reduce_sum(self.recipe.importance.squares(seen.u, seen.losses)))
        for average in self.averages.values():
            average.update(self.parameters, self.nimg, batch)
        return Step(self.nimg, loss, Level(seen.a, seen.s), seen.losses, asked > 0)

    def zero_gradients(self) -> None:
        """Forget the gradient. Kept as zeros where a parameter may go untouched."""
        self.optimizer.zero_grad(set_to_none=self.compute.sharded)

    def gradient(self, nimg: int, batch: int) -> _Seen:
        """Add to every parameter's gradient that of the mean loss over images nimg ... nimg + batch - 1 of the run."""
        u = self.recipe.draw(rng.fold(self.config.seed, Stream.LEVEL), nimg, batch)
        share = batch // self.world
        parts = list(
            zip(self._micro_batches(nimg, batch), u[self.rank * share :][:share].split(self._most(share)), strict=True)
        )
        seen = []
        self.denoiser.train()
        for i, (ids, levels) in enumerate(parts):
            with nullcontext() if i == len(parts) - 1 else parallel.no_gradient_sync(self.objective):
                seen.append(self._micro_gradient(ids, levels, batch))
        return _Seen(*map(torch.cat, zip(*seen, strict=True)))

    def _micro_gradient(self, ids: Tensor, u: Tensor, batch: int) -> _Seen:
        """The share in the gradient of one micro-batch of images `ids` `[b]` at uniform draws u `[b]`."""
        config = self.config
        examples = self._examples(ids)
        before = time.perf_counter()
        x0, cond = self.data(examples)
        self.data_wait_seconds += time.perf_counter() - before
        if self.transform is not None:
            x0, cond = self.transform(x0, cond, rng.fold(config.seed, Stream.TRANSFORM), ids)
        x0 = x0.to(self.device, non_blocking=True)
        if x0.ndim == 4 and self.channels_last:
            x0 = x0.contiguous(memory_format=torch.channels_last)
        cond = to(
            drop(cond, config.condition_dropout, rng.fold(config.seed, Stream.CONDITION_DROPOUT), ids), self.device
        )
        u = u.to(self.device)
        u, scale = self.recipe.importance(u) if self.recipe.importance else (u, torch.ones_like(u))
        noise = self.recipe.noise(x0.shape[1:], rng.fold(config.seed, Stream.NOISE), ids.to(self.device))
        noise = noise.to(x0) if x0.is_floating_point() else noise

        with torch.random.fork_rng(_cuda(self.device)):
            torch.manual_seed(rng.fold(config.seed, Stream.DROPOUT, int(ids[0])))
            with computing.autocast(self.compute, self.device):
                losses, a, s, nothing = self.objective(x0, u, noise, cond)
            weighted = losses * scale.to(losses)
            share = (self.world if self.together else 1) / batch
            (weighted.sum() * share + nothing).backward()
        a, s = (part.detach().expand(len(ids)) for part in (a, s))
        return _Seen(examples, u, a, s, losses.detach(), weighted.detach())

    def try_microbatch(self, size: int) -> None:
        """Forward and backward pass of `size` images at once, as a step has them, to see whether they fit."""
        ids = torch.arange(self.nimg, self.nimg + size)
        self._micro_gradient(ids, self.recipe.draw(rng.fold(self.config.seed, Stream.LEVEL), self.nimg, size), size)

    def _micro_batches(self, nimg: int, batch: int) -> tuple[Tensor, ...]:
        """The numbers of the images that this rank sees of a batch, those at a time that are in memory at once."""
        share = batch // self.world
        first = nimg + self.rank * share
        return torch.arange(first, first + share).split(self._most(share))

    def _most(self, share: int) -> int:
        return min(share, self.compute.microbatch or share)

    def _examples(self, ids: Tensor) -> Tensor:
        return data_order.indices(rng.fold(self.config.seed, Stream.ORDER), int(ids[0]), len(ids), self.n)

    def averaged(self, name: str = "ema") -> Preconditioned:
        """A copy of the denoiser with averaged weights, in evaluation mode. Where weights are split all ranks must call it."""
        twin = copy.deepcopy(self._blank).to(self.device).eval().requires_grad_(False)
        own = dict(twin.named_parameters())
        for key, value in self.averages[name].weights.items():
            part, _, rest = key.partition(".")
            if part == "denoiser":
                own[rest].copy_(parallel.full_tensor(value))
        return twin

    @torch.no_grad()
    def warm_start(self, weights: Mapping[str, Tensor]) -> None:
        """Begin at another model's weights, named as in the denoiser; raises ValueError if they are another network's."""
        own = {k.removeprefix("denoiser."): p for k, p in self.parameters.items() if k.startswith("denoiser.")}
        joint_objective.check_matching(own, weights)
        for name, parameter in own.items():
            parallel.copy_full(parameter, weights[name])
        for average in self.averages.values():
            for key, parameter in self.parameters.items():
                parallel.local_shard(average.weights[key]).copy_(parallel.local_shard(parameter))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a restart needs, on any number of ranks: tensors by name (weights, averages, optimiser) and a JSON-able
        dict. Where weights are split all ranks must call it."""
        tensors = {
            f"weights/{name}": parallel.full_tensor(value.detach()) for name, value in self.learned.state_dict().items()
        }
        for name, average in self.averages.items():
            tensors |= {f"{name}/{key}": parallel.full_tensor(value) for key, value in average.weights.items()}
        for key, parameter in self.parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adamw.{moment}/{key}"] = parallel.full_tensor(value)
        return tensors, {"nimg": self.nimg, "n": self.n, "config": asdict(self.config)}

    def load_state(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Go on from a state of the same recipe, config and data; if it is another's, raises ValueError naming what differs."""
        mine = json.loads(json.dumps({"n": self.n, **asdict(self.config)}))
        theirs = json.loads(json.dumps({"n": info["n"], **info["config"]}))
        differing = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
        if differing:
            told = ", ".join(f"{key} {theirs.get(key)} instead of {mine.get(key)}" for key in differing)
            raise ValueError(f"the state is of another training run: {told}")
        grouped: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, key = name.partition("/")
            grouped.setdefault(group, {})[key] = value
        joint_objective.load_tensors(self.learned.state_dict(), grouped.pop("weights"))
        for name, average in self.averages.items():
            joint_objective.load_tensors(average.weights, grouped.pop(name))
        for key, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                moment: self._moment(moment, values[key], parameter)
                for moment, values in ((name.removeprefix("adamw."), group) for name, group in grouped.items())
            }
        self.nimg = int(info["nimg"])

    def _moment(self, moment: str, value: Tensor, parameter: Tensor) -> Tensor:
        if moment == "step":  # AdamW counts where it computes: on the CPU, unless it is one kernel
            return value.to(self.device if self.device.type == "cuda" else "cpu", copy=True)
        own = torch.zeros_like(parameter)
        parallel.copy_full(own, value)
        return own

    def _diverged(self, seen: _Seen, norm: float) -> Diverged:
        """The error that names the examples of all ranks whose loss is not finite, or else all of the batch."""
        bad = ~seen.losses.isfinite().cpu()
        sigma = Level(seen.a, seen.s).sigma.cpu().expand(len(bad))
        mine = [seen.examples[bad].tolist(), [f"{v:.3g}" for v in sigma[bad].tolist()], seen.examples.tolist()]
        ranks = parallel.all_gather(mine)
        named, noise, batch = (list(chain.from_iterable(rank[i] for rank in ranks)) for i in range(3))
        if named:
            return Diverged(f"the loss is not finite at image {self.nimg} for examples {named} (sigma {noise})", named)
        return Diverged(
            f"the gradient (norm {norm}) is not finite at image {self.nimg}, of examples {batch}, though every loss is",
            batch,
        )


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
