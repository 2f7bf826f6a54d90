"""What learns: the denoiser and whatever a recipe learns beside it, as one module with one loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from diffusion_core.conditioning import Cond
from diffusion_core.recipe import Recipe
from diffusion_core.training import parallel


class Objective(nn.Module):
    """The loss of a batch as a module of everything that learns, so that all of it is one to DDP and FSDP."""

    def __init__(self, learned: nn.ModuleDict, recipe: Recipe, together: bool) -> None:
        super().__init__()
        self.learned = learned
        self.recipe = recipe
        self.together = together

    def forward(self, x0: Tensor, u: Tensor, noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Losses, the levels' a and s, `[B]` each, and `parallel.zero_of_all`."""
        level = self.recipe.density(u)
        losses = self.recipe.loss(self.learned["denoiser"], x0, level, noise, self.recipe.weight, cond)
        return losses, level.a, level.s, parallel.zero_of_all(self.learned) if self.together else losses.new_zeros(())


def trained_modules(denoiser: nn.Module, recipe: Recipe) -> nn.ModuleDict:
    """Everything with weights: the denoiser and whatever the recipe learns beside it."""
    learned = nn.ModuleDict({"denoiser": denoiser})
    for name in ("density", "weight", "loss", "importance"):
        part = getattr(recipe, name)
        if isinstance(part, nn.Module):
            learned[name] = part
    return learned


def check_matching(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """ValueError, with the names, if the two are not alike."""
    if own.keys() != other.keys():
        raise ValueError(f"the state has other weights: {sorted(own.keys() ^ other.keys())[:4]}")
    for key, value in own.items():
        if value.shape != other[key].shape:
            raise ValueError(f"the state's {key} is {list(other[key].shape)} instead of {list(value.shape)}")


def load_tensors(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into ones that may be split over the ranks; ValueError if the two are not alike."""
    check_matching(own, other)
    for key, value in own.items():
        parallel.copy_full(value, other[key])
