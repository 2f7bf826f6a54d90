"""The training loop. Every step is a function of (weights, seed, images seen).

The number i of an image in the run decides which example is shown (`data_order`), at which level, with what noise, and whether
its conditions are withheld. Rank r of W takes its slice of the total batch, in micro-batches where memory is short. So batches
are the same for every W, and stopping and resuming changes nothing.
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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.conditioning import Cond, drop, to_device
from diffusion_core.denoiser import Preconditioned
from diffusion_core.nets.magnitude import normalise_weights
from diffusion_core.recipe import Recipe
from diffusion_core.rng import Stream
from diffusion_core.schedules import Level
from diffusion_core.training import compute as computing
from diffusion_core.training import data_order, joint_objective, lr_schedule, optimisers, parallel
from diffusion_core.training.compute import Compute
from diffusion_core.training.ema import Average, Decay, halflife
from diffusion_core.training.lr_schedule import TrainConfig as TrainConfig
from diffusion_core.training.monitoring import evaluate as evaluate

Data = Callable[[Tensor], tuple[Tensor, Cond]]  # indices [B] -> examples [B, *S] and their conditions

# Augmentation: (examples, conditions, seed, image numbers [B]) -> the same, changed as a function of seed and image number.
Transform = Callable[[Tensor, Cond, int, Tensor], tuple[Tensor, Cond]]


_STATE = "optimiser."  # names of the optimiser's tensors in a state begin with it


class Step(NamedTuple):
    """The result of one step."""

    nimg: int  # images seen after it
    loss: float  # mean over all ranks
    level: Level  # this rank's, [B / W]
    losses: Tensor  # this rank's, [B / W]
    stop: bool = False  # whether any rank was asked to stop (`Trainer.stop`), the same on all ranks


@runtime_checkable
class RunningStatistics(Protocol):
    """A module that learns from what it sees instead of by gradients, such as a codebook of running means, or that changes
    in the course of the training.

    It collects in the forward pass and changes in `end_step` only, so that passes which measure something leave no trace.
    """

    def begin_step(self, nimg: int) -> None:
        """Forget what was collected. `nimg` images were seen before this step."""

    def end_step(self) -> None:
        """Update from what was collected since, on all ranks."""


class Diverged(ArithmeticError):
    """A loss or a gradient is not finite. `examples`: indices of those with such a loss, otherwise of the whole batch."""

    def __init__(self, message: str, examples: list[int]) -> None:
        super().__init__(message)
        self.examples = examples


class _BatchResult(NamedTuple):
    """This rank's part of a batch, or of a micro-batch; `[B / W]` each."""

    examples: Tensor  # indices
    u: Tensor  # uniform draws that decide the levels
    a: Tensor  # levels
    s: Tensor
    losses: Tensor
    weighted: Tensor  # losses divided by their importance


class Trainer:
    """Trains a denoiser in place; `averages` maps a name to the decay of a running average of the weights.

    data gives the examples of indices below n, transform augments them, `averages` maps names to decays of running averages of
    the weights. Under `torch.distributed` every rank makes the same Trainer. Raises ValueError if a batch does not divide among
    the ranks.
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
        self.stop = False  # set it on any rank, for example in a signal handler, and the next step tells all ranks
        self.data_wait_seconds = 0.0  # time spent waiting for examples
        self.device = next(denoiser.parameters()).device
        self.learned = joint_objective.trained_modules(denoiser, recipe).to(self.device)
        self.compile_warning = computing.prepare(denoiser, self.compute, self.device)
        self.channels_last = computing.has_convolutions(denoiser)
        self._unsharded = copy.deepcopy(denoiser).cpu() if self.compute.sharded else denoiser
        self.distributed = self.world > 1 or self.compute.sharded  # gradients are then means over the ranks
        self.objective: nn.Module = joint_objective.Objective(self.learned, recipe, self.distributed)
        if self.distributed:
            self.objective = parallel.parallelise(self.objective, self.device, self.compute.sharded)
        self.parameters = {k: p for k, p in self.learned.named_parameters() if p.requires_grad}
        if not self.compute.sharded:
            # Zeros, so that parameters that a batch does not use have a gradient too.
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer = optimisers.build(
            config.optimiser,
            self.learned,
            self.parameters,
            config.learning_rate,
            config.muon_learning_rate,
            config.weight_decay,
            self.device,
            torch.bfloat16 if self.compute.precision == "bf16" else torch.float32,
        )
        self.running = [module for module in self.learned.modules() if isinstance(module, RunningStatistics)]
        self.clipped = joint_objective.clipping_groups(self.learned, self.parameters)
        decays = averages or {"ema": halflife(config.ema_halflife_images, config.ema_warmup)}
        self.averages = {name: Average(self.parameters, decay) for name, decay in decays.items()}

    @property
    def done(self) -> bool:
        """Whether the run has seen all its images."""
        return self.nimg >= self.config.images

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return lr_schedule.learning_rate(self.config, self.nimg)

    def upcoming(self) -> Iterator[Tensor]:
        """The indices of this rank's micro-batches from now to the end of the run, for a loader that reads ahead."""
        for nimg, batch in lr_schedule.steps(self.config, self.nimg):
            for ids in self._micro_batches(nimg, batch):
                yield self._examples(ids)

    def step(self) -> Step:
        """Train on the next batch. Raises Diverged, before any weight changes, if loss or gradient is not finite."""
        batch = lr_schedule.batch_size(self.config, self.nimg)
        self.zero_gradients()
        for module in self.running:
            module.begin_step(self.nimg)
        result = self.gradient(self.nimg, batch)
        sums = torch.stack([result.weighted.sum() / batch, result.weighted.new_tensor(float(self.stop))])
        parallel.all_reduce_sum(sums)
        norms = [nn.utils.clip_grad_norm_(group, self.config.grad_clip) for group in self.clipped]
        norm = torch.stack([parallel.full_tensor(norm) for norm in norms]).sum()
        loss, stops, gradient_norm = torch.stack([*sums, norm.to(sums)]).tolist()  # the only wait for the device
        if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
            raise self._diverged(result, gradient_norm)

        optimisers.set_rate(self.optimizer, self.learning_rate())
        self.optimizer.step()
        for module in self.running:
            module.end_step()
        self.nimg += batch
        if self.recipe.importance:
            self.recipe.importance.update(
                parallel.all_reduce_sum(self.recipe.importance.squares(result.u, result.losses))
            )
        for average in self.averages.values():
            average.update(self.parameters, self.nimg, batch)
        return Step(self.nimg, loss, Level(result.a, result.s), result.losses, stops > 0)

    def zero_gradients(self) -> None:
        """Reset the gradients: to zeros, or to None with sharded weights."""
        self.optimizer.zero_grad(set_to_none=self.compute.sharded)

    def gradient(self, nimg: int, batch: int) -> _BatchResult:
        """Add the gradient of the mean loss over images nimg ... nimg + batch - 1 of the run to every parameter's gradient."""
        u = self.recipe.draw(rng.fold(self.config.seed, Stream.LEVEL), nimg, batch)
        share = batch // self.world
        own_u = torch.split(u[self.rank * share :][:share], self._micro_batch_size(share))
        micro_batches = list(zip(self._micro_batches(nimg, batch), own_u, strict=True))
        results = []
        self.denoiser.train()
        if self.compute.sharded:
            normalise_weights(self.learned)  # in the forward pass a network would only reset gathered copies
        for i, (ids, micro_u) in enumerate(micro_batches):
            with nullcontext() if i == len(micro_batches) - 1 else parallel.no_gradient_sync(self.objective):
                results.append(self._micro_gradient(ids, micro_u, batch))
        return _BatchResult(*map(torch.cat, zip(*results, strict=True)))

    def _micro_gradient(self, ids: Tensor, u: Tensor, batch: int) -> _BatchResult:
        """Add the gradient of one micro-batch: images `ids` `[b]` of the run, at levels given by uniform draws u `[b]`."""
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
        cond = to_device(
            drop(cond, config.condition_dropout, rng.fold(config.seed, Stream.CONDITION_DROPOUT), ids), self.device
        )
        u = u.to(self.device)
        u, scale = self.recipe.importance(u) if self.recipe.importance else (u, torch.ones_like(u))
        noise = self.recipe.noise(x0.shape[1:], rng.fold(config.seed, Stream.NOISE), ids.to(self.device))
        noise = noise.to(x0) if x0.is_floating_point() else noise

        with torch.random.fork_rng(_cuda(self.device)):
            torch.manual_seed(rng.fold(config.seed, Stream.DROPOUT, int(ids[0])))
            with computing.autocast(self.compute, self.device):
                losses, a, s, zero = self.objective(x0, u, noise, cond)
            weighted = losses * scale.to(losses)
            share = (self.world if self.distributed else 1) / batch
            (weighted.sum() * share + zero).backward()
        a, s = (value.detach().expand(len(ids)) for value in (a, s))
        return _BatchResult(examples, u, a, s, losses.detach(), weighted.detach())

    def try_microbatch(self, size: int) -> None:
        """Run forward and backward pass of `size` images at once, as in a step, to see whether they fit into memory."""
        ids = torch.arange(self.nimg, self.nimg + size)
        self._micro_gradient(ids, self.recipe.draw(rng.fold(self.config.seed, Stream.LEVEL), self.nimg, size), size)

    def _micro_batches(self, nimg: int, batch: int) -> tuple[Tensor, ...]:
        """The numbers of this rank's images of a batch, one tensor for each micro-batch."""
        share = batch // self.world
        first = nimg + self.rank * share
        return torch.split(torch.arange(first, first + share), self._micro_batch_size(share))

    def _micro_batch_size(self, share: int) -> int:
        return min(share, self.compute.microbatch or share)

    def _examples(self, ids: Tensor) -> Tensor:
        return data_order.indices(rng.fold(self.config.seed, Stream.ORDER), int(ids[0]), len(ids), self.n)

    def averaged(self, name: str = "ema") -> Preconditioned:
        """A copy of the denoiser with averaged weights, in evaluation mode. With sharded weights all ranks must call this."""
        twin = copy.deepcopy(self._unsharded).to(self.device).eval().requires_grad_(False)
        own = dict(twin.named_parameters())
        for key, value in self.averages[name].weights.items():
            module, _, name_in_module = key.partition(".")
            if module == "denoiser":
                own[name_in_module].copy_(parallel.full_tensor(value))
        return twin

    @torch.no_grad()
    def warm_start(self, weights: Mapping[str, Tensor]) -> None:
        """Start from another model's weights, named as in the denoiser. Raises ValueError if names or shapes differ."""
        own = {k.removeprefix("denoiser."): p for k, p in self.parameters.items() if k.startswith("denoiser.")}
        joint_objective.check_matching(own, weights)
        for name, parameter in own.items():
            parallel.copy_full(parameter, weights[name])
        for average in self.averages.values():
            for key, parameter in self.parameters.items():
                parallel.local_shard(average.weights[key]).copy_(parallel.local_shard(parameter))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a restart needs, on any number of ranks: tensors by name (weights, averages, optimiser) and a dict
        for JSON. With sharded weights all ranks must call this."""
        tensors = {
            f"weights/{name}": parallel.full_tensor(value.detach()) for name, value in self.learned.state_dict().items()
        }
        for name, average in self.averages.items():
            tensors |= {f"{name}/{key}": parallel.full_tensor(value) for key, value in average.weights.items()}
        for key, parameter in self.parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{_STATE}{moment}/{key}"] = parallel.full_tensor(value)
        return tensors, {"nimg": self.nimg, "n": self.n, "config": asdict(self.config)}

    def load_state(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Continue from a state of the same recipe, config and data. Raises ValueError, naming the differences, otherwise."""
        own = json.loads(json.dumps({"n": self.n, **asdict(self.config)}))
        stored = json.loads(json.dumps({"n": info["n"], **info["config"]}))
        differing = [key for key in sorted(own.keys() | stored.keys()) if own.get(key) != stored.get(key)]
        if differing:
            changes = ", ".join(f"{key} {stored.get(key)} instead of {own.get(key)}" for key in differing)
            raise ValueError(f"the state is of another training run: {changes}")
        grouped: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, key = name.partition("/")
            grouped.setdefault(group, {})[key] = value
        joint_objective.load_tensors(self.learned.state_dict(), grouped.pop("weights"))
        for name, average in self.averages.items():
            joint_objective.load_tensors(average.weights, grouped.pop(name))
        for key, parameter in self.parameters.items():
            self.optimizer.state[parameter] = {
                name.removeprefix(_STATE): self._moment(name.removeprefix(_STATE), values[key], parameter)
                for name, values in grouped.items()
                if key in values
            }
        self.nimg = int(info["nimg"])

    def _moment(self, moment: str, value: Tensor, parameter: Tensor) -> Tensor:
        if moment == "step":  # AdamW keeps its step count on the CPU, unless it is fused
            return value.to(self.device if self.device.type == "cuda" else "cpu", copy=True)
        if value.shape != parameter.shape or value.dtype != parameter.dtype:  # 8 bits: codes, and scales of blocks
            return value.to(self.device, copy=True)
        own = torch.zeros_like(parameter)
        parallel.copy_full(own, value)
        return own

    def _diverged(self, result: _BatchResult, norm: float) -> Diverged:
        """The error that names the examples of all ranks whose loss is not finite, or else all of the batch."""
        bad = ~result.losses.isfinite().cpu()
        sigma = Level(result.a, result.s).sigma.cpu().expand(len(bad))
        own = [result.examples[bad].tolist(), [f"{v:.3g}" for v in sigma[bad].tolist()], result.examples.tolist()]
        ranks = parallel.all_gather(own)
        named, sigmas, batch = (list(chain.from_iterable(rank[i] for rank in ranks)) for i in range(3))
        if named:
            return Diverged(f"the loss is not finite at image {self.nimg} for examples {named} (sigma {sigmas})", named)
        return Diverged(
            f"the gradient (norm {norm}) is not finite at image {self.nimg}, of examples {batch}, though every loss is",
            batch,
        )


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []
