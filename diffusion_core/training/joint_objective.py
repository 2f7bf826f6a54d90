"""The denoiser and any other trained parts of a recipe, as one module with one loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.recipe import Recipe
from diffusion_core.training import parallel


class Objective(nn.Module):
    """The loss of a batch as a module that holds everything trained, so that DDP and FSDP wrap one module.

    distributed: whether gradients are averaged over ranks.
    """

    def __init__(self, learned: nn.ModuleDict, recipe: Recipe, distributed: bool) -> None:
        super().__init__()
        self.learned = learned
        self.recipe = recipe
        self.distributed = distributed

    def forward(self, x0: Tensor, u: Tensor, noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses, the levels' a and s, `[B]` each, and `parallel.zero_of_all` to be added to the mean loss."""
        level = self.recipe.density(u)
        losses = self.recipe.loss(self.learned["denoiser"], x0, level, noise, self.recipe.weight, cond)
        zero = parallel.zero_of_all(self.learned) if self.distributed else losses.new_zeros(())
        return losses, level.a, level.s, zero


def trained_modules(denoiser: nn.Module, recipe: Recipe) -> nn.ModuleDict:
    """Everything with weights: the denoiser, and those parts of the recipe that are modules."""
    learned = nn.ModuleDict({"denoiser": denoiser})
    for name in ("density", "weight", "loss", "importance"):
        part = getattr(recipe, name)
        if isinstance(part, nn.Module):
            learned[name] = part
    return learned


def clipping_groups(learned: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[list[nn.Parameter]]:
    """The parameters whose gradients are clipped together: those of each module that says `clipped_alone`, and all others."""
    alone = [module for module in learned.modules() if getattr(module, "clipped_alone", False)]
    own = [[p for p in module.parameters() if p.requires_grad] for module in alone]
    taken = {id(p) for group in own for p in group}
    return [[p for p in parameters.values() if id(p) not in taken], *own]


def check_matching(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the difference, unless both have the same names and shapes."""
    if own.keys() != other.keys():
        raise ValueError(f"the state has other weights: {sorted(own.keys() ^ other.keys())[:4]}")
    for key, value in own.items():
        if value.shape != other[key].shape:
            raise ValueError(f"the state's {key} is {list(other[key].shape)} instead of {list(value.shape)}")


def load_tensors(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Copy full tensors into ones that may be sharded over the ranks; ValueError if names or shapes differ."""
    check_matching(own, other)
    for key, value in own.items():
        parallel.copy_full(value, other[key])
