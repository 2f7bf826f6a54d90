"""The training loop, the only one. Its clock is images seen; all it does is a function of (weights, seed, images seen).

Image number i of the run decides which example is shown (`order`), at which level, with what noise, and whether its
conditions are withheld. Rank r of W takes its slice of the total batch, so the batches are the same for every W, and
stopping leaves no trace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from diffusion_core import order, rng
from diffusion_core.average import Average, Decay, halflife
from diffusion_core.cond import Cond, drop, rows, to
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.level import Level
from diffusion_core.recipe import Recipe

Data = Callable[[Tensor], tuple[Tensor, Cond]]  # indices [B] -> examples [B, *S] and their conditions

# Augmentation: (examples, conditions, seed, image numbers [B]) -> the same, changed as a function of seed and image number.
Transform = Callable[[Tensor, Cond, int, Tensor], tuple[Tensor, Cond]]

# What a draw is for, folded into the seed so that the draws are unrelated.
_ORDER, _LEVEL, _NOISE, _CONDITION, _DROPOUT, _EVALUATION, _, _TRANSFORM = range(8)  # 6 is `variance`'s


@dataclass(frozen=True)
class TrainConfig:
    """The numbers of a training run; lengths are in images seen."""

    images: int
    batch: int  # total over all ranks
    learning_rate: float = 1e-3
    warmup_images: int = 0  # the learning rate grows linearly to its value
    ema_halflife_images: int = 0
    ema_warmup: float = 0.05  # the half-life is at most this share of the images seen
    grad_clip: float = 1.0  # largest norm of the gradient
    weight_decay: float = 0.0
    condition_dropout: float = 0.0
    seed: int = 0


class Step(NamedTuple):
    """What one step saw: the images seen after it, its mean loss over all ranks, and this rank's levels and losses."""

    nimg: int
    loss: float
    level: Level  # [B / W]
    losses: Tensor  # [B / W]


class Diverged(ArithmeticError):
    """A loss or a gradient is not finite; the message names the examples."""


class Trainer:
    """Trains a denoiser in place with AdamW; `averages` maps a name to the decay of a running average of the weights.

    data gives the examples of indices below n, transform augments them. Under `torch.distributed` every rank makes the same
    Trainer. Raises ValueError if the batch does not divide among the ranks.
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
    ) -> None:
        self.rank, self.world = (
            (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        )
        if config.batch % self.world:
            raise ValueError(f"a batch of {config.batch} does not divide among {self.world} ranks")
        self.denoiser = denoiser
        self.recipe = recipe
        self.config = config
        self.data = data
        self.transform = transform
        self.n = n
        self.nimg = 0
        self.learned = _learned(denoiser, recipe)
        self.parameters = {k: p for k, p in self.learned.named_parameters() if p.requires_grad}
        for (
            parameter
        ) in self.parameters.values():  # a part that one rank's batch does not touch has a gradient all the same
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
        )
        decays = averages or {"ema": halflife(config.ema_halflife_images, config.ema_warmup)}
        self.averages = {name: Average(self.parameters, decay) for name, decay in decays.items()}

    @property
    def done(self) -> bool:
        """Whether the run has seen all its images."""
        return self.nimg >= self.config.images

    def step(self) -> Step:
        """One step on images nimg ... nimg + batch - 1; raises Diverged if loss or gradient is not finite."""
        config = self.config
        share = config.batch // self.world
        first = self.nimg + self.rank * share
        ids = torch.arange(first, first + share)
        examples = order.indices(rng.fold(config.seed, _ORDER), first, share, self.n)
        device = next(iter(self.parameters.values())).device

        x0, cond = self.data(examples)
        if self.transform is not None:
            x0, cond = self.transform(x0, cond, rng.fold(config.seed, _TRANSFORM), ids)
        x0 = x0.to(device)
        cond = to(drop(cond, config.condition_dropout, rng.fold(config.seed, _CONDITION), ids), device)
        u = self.recipe.draw(rng.fold(config.seed, _LEVEL), self.nimg, config.batch)
        u = u[self.rank * share :][:share].to(device)
        u, scale = self.recipe.importance(u) if self.recipe.importance else (u, torch.ones_like(u))
        level = self.recipe.density(u)
        noise = self.recipe.noise(x0.shape[1:], rng.fold(config.seed, _NOISE), ids.to(device))
        noise = noise.to(x0) if x0.is_floating_point() else noise

        self.denoiser.train()
        self.optimizer.zero_grad(set_to_none=False)
        with torch.random.fork_rng(_cuda(device)):
            torch.manual_seed(rng.fold(config.seed, _DROPOUT, first))
            losses = self.recipe.loss(self.denoiser, x0, level, noise, self.recipe.weight, cond)
            weighted = losses * scale.to(losses)
            (weighted.sum() / config.batch).backward()
        mean = self._reduce(weighted)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.grad_clip)
        if not (mean.isfinite() and norm.isfinite()):
            raise Diverged(_blame(losses, level, examples, self.nimg, norm))

        self.optimizer.param_groups[0]["lr"] = self.learning_rate()
        self.optimizer.step()
        self.nimg += config.batch
        if self.recipe.importance:
            self.recipe.importance.update(self._sum(self.recipe.importance.squares(u, losses)))
        for average in self.averages.values():
            average.update(self.parameters, self.nimg, config.batch)
        return Step(self.nimg, float(mean), Level(level.a.detach(), level.s.detach()), losses.detach())

    def learning_rate(self) -> float:
        """The learning rate of the step at hand."""
        config = self.config
        ramp = (self.nimg + config.batch) / max(config.warmup_images, 1)
        return config.learning_rate * min(1.0, ramp)

    def averaged(self, name: str = "ema") -> Preconditioned:
        """A copy of the denoiser with averaged weights, in evaluation mode."""
        twin = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        own = dict(twin.named_parameters())
        for key, value in self.averages[name].weights.items():
            part, _, rest = key.partition(".")
            if part == "denoiser":
                own[rest].copy_(value)
        return twin

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a restart needs: tensors by name (weights, averages, optimiser) and a JSON-able dict."""
        tensors = {f"weights/{name}": value.detach() for name, value in self.learned.state_dict().items()}
        for name, average in self.averages.items():
            tensors |= {f"{name}/{key}": value for key, value in average.weights.items()}
        for key, parameter in self.parameters.items():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adamw.{moment}/{key}"] = value
        return tensors, {"nimg": self.nimg, "n": self.n, "config": asdict(self.config)}

    def load_state(self, tensors: Mapping[str, Tensor], info: Mapping[str, Any]) -> None:
        """Go on from a state of the same recipe, config and data; raises ValueError if it is another's."""
        mine = {"n": self.n, "config": asdict(self.config)}
        theirs = {key: info[key] for key in mine}
        if theirs != mine:
            raise ValueError(f"the state is of another training run: {theirs} instead of {mine}")
        grouped: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, key = name.partition("/")
            grouped.setdefault(group, {})[key] = value
        with torch.no_grad():
            _copy(self.learned.state_dict(), grouped.pop("weights"))
            for name, average in self.averages.items():
                _copy(average.weights, grouped.pop(name))
            for key, parameter in self.parameters.items():
                self.optimizer.state[parameter] = {
                    # AdamW keeps its step count on the CPU
                    moment: values[key].clone() if moment == "step" else values[key].to(parameter, copy=True)
                    for moment, values in ((name.removeprefix("adamw."), group) for name, group in grouped.items())
                }
        self.nimg = int(info["nimg"])

    def _sum(self, value: Tensor) -> Tensor:
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def _reduce(self, losses: Tensor) -> Tensor:
        """Sum gradients and mean loss over the ranks, in one message; returns the mean loss."""
        mean = losses.detach().sum() / self.config.batch
        if self.world == 1:
            return mean
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]  # all, since __init__
        flat = torch.cat([mean.reshape(1), *(g.flatten() for g in gradients)])
        distributed.all_reduce(flat)
        for gradient, part in zip(gradients, flat[1:].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return flat[0]


@torch.no_grad()
def evaluate(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond,
    levels: Level,
    seed: int = 0,
    batch: int = 256,
) -> Tensor:
    """Mean squared error of x0 over the examples `[N, *S]` at each of the levels `[L]`: `[L]` float64.

    Example i meets the same noise at every level and every call, so that differences over training, and between training and
    held-out data, are the model's.
    """
    total = torch.zeros(len(levels.a), dtype=torch.float64)
    for start in range(0, len(x0), batch):
        part = slice(start, min(start + batch, len(x0)))
        ids = torch.arange(part.start, part.stop, device=x0.device)
        noise = rng.normal(x0.shape[1:], rng.fold(seed, _EVALUATION), ids).to(x0)
        for i in range(len(total)):
            level = Level(levels.a[i], levels.s[i])
            guess = denoiser(level.corrupt(x0[part], noise), level, rows(cond, part))
            total[i] += (guess - x0[part]).double().square().flatten(1).mean(1).sum().cpu()
    return total / len(x0)


def _learned(denoiser: nn.Module, recipe: Recipe) -> nn.ModuleDict:
    """Everything with weights: the denoiser and whatever the recipe learns beside it."""
    learned = nn.ModuleDict({"denoiser": denoiser})
    for name in ("density", "weight", "loss", "importance"):
        part = getattr(recipe, name)
        if isinstance(part, nn.Module):
            learned[name] = part
    return learned


def _copy(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    if own.keys() != other.keys():
        raise ValueError(f"the state has other weights: {sorted(own.keys() ^ other.keys())[:4]}")
    for key, value in own.items():
        value.copy_(other[key])


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _blame(losses: Tensor, level: Level, examples: Tensor, nimg: int, norm: Tensor) -> str:
    bad = ~losses.detach().isfinite().cpu()
    if not bad.any():
        names = f"of examples {examples.tolist()} or another rank's"
        return f"the loss or the gradient (norm {float(norm)}) is not finite at image {nimg}, {names}"
    noise = [f"{v:.3g}" for v in level.sigma.cpu().expand(len(bad))[bad].tolist()]
    return f"the loss is not finite at image {nimg} for examples {examples[bad].tolist()} (sigma {noise})"
