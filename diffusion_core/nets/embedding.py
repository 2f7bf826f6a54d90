"""How a network takes its level and its conditions: vectors, maps, context tokens, each of which may be withheld."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from diffusion_core.conditioning import Cond, keep_mask


def take(conds: Mapping[str, int] | None, net: str, kinds: Collection[str]) -> dict[str, dict[str, int]]:
    """The widths of a network's conditions by kind, then by name: {"vec": {"category": 4}, "map": {}, ...}.

    Raises ValueError if there is one of a kind that the network named `net` has no use for.
    """
    out: dict[str, dict[str, int]] = {kind: {} for kind in ("vec", "map", "tok")}
    for key, width in (conds or {}).items():
        kind, _, name = key.partition(":")
        if kind not in kinds or kind not in out or not name:
            allowed = ", ".join(f"{kind}:*" for kind in kinds)
            raise ValueError(f"the {net} takes {allowed} conditions, not {key}")
        out[kind][name] = width
    return out


class Fourier(nn.Module):
    """A number `[B]` as sines and cosines `[B, width]` of geometrically spaced frequencies."""

    frequencies: Tensor

    def __init__(self, width: int, lowest: float = 0.5, highest: float = 64.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 1, width // 2, base=highest / lowest) * lowest, False)

    def forward(self, c: Tensor) -> Tensor:
        turn = c[:, None] * self.frequencies.to(c)
        return torch.cat([turn.cos(), turn.sin()], 1) * math.sqrt(2)


class Embedding(nn.Module):
    """Level and `vec:*` conditions as one vector `[B, width]`.

    vectors gives each condition's width by name. A condition that is withheld contributes a learned vector instead.
    """

    def __init__(self, width: int, vectors: Mapping[str, int]) -> None:
        super().__init__()
        self.level = nn.Sequential(Fourier(width), nn.Linear(width, width))
        self.conds = nn.ModuleDict({name: nn.Linear(size, width) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in vectors})
        self.out = nn.Linear(width, width)

    def forward(self, c_noise: Tensor, cond: Cond) -> Tensor:
        total = self.level(c_noise)
        for name, embed in self.conds.items():
            total = total + given_or_null(cond, f"vec:{name}", embed, self.nulls[name])
        return silu(self.out(silu(total)))


class Context(nn.Module):
    """All `tok:*` conditions as one sequence `[B, 1 + M, width]`, and which of its tokens count, `[B, 1, 1, 1 + M]` or None.

    tokens gives each condition's width by name. The first token is learned and always there, so that there is something to
    attend to when everything is withheld. The tokens have no places: their order does not matter.
    """

    def __init__(self, width: int, tokens: Mapping[str, int]) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({name: nn.Linear(size, width) for name, size in tokens.items()})
        self.null = nn.Parameter(torch.randn(1, 1, width) * 0.02)

    def forward(self, cond: Cond, batch: int) -> tuple[Tensor, Tensor | None]:
        parts = [self.null.expand(batch, -1, -1)]
        masks = [torch.ones(batch, 1, dtype=torch.bool, device=self.null.device)]
        partly = False
        for name, embed in self.embed.items():
            key = f"tok:{name}"
            if key in cond:
                keep = keep_mask(cond, key)
                partly = partly or keep is not None
                parts.append(embed(cond[key]))
                every = torch.ones(parts[-1].shape[:2], dtype=torch.bool, device=self.null.device)
                masks.append(every if keep is None else every & keep[:, None])
        mask = torch.cat(masks, 1)[:, None, None] if partly else None  # without a mask attention is faster
        return torch.cat(parts, 1), mask


class ConditionTokens(nn.Module):
    """Level and every condition as tokens `[B, T, width]`, and which count, `[B, 1, 1, T]` or None (all).

    The level and each `vec:*` condition are a token each (a learned one where it is withheld), then comes the `Context`. For
    networks without modulation, to which all inputs are tokens.
    """

    def __init__(self, width: int, vectors: Mapping[str, int], tokens: Mapping[str, int]) -> None:
        super().__init__()
        self.level = nn.Sequential(Fourier(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.conds = nn.ModuleDict({name: nn.Linear(size, width) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.randn(width) * 0.02) for name in vectors})
        self.context = context(width, tokens)

    @property
    def always(self) -> int:
        """Tokens that are there in any case, the first of the sequence."""
        return 1 + len(self.conds)

    def forward(self, c_noise: Tensor, cond: Cond) -> tuple[Tensor, Tensor | None]:
        level = self.level(c_noise)
        parts = [level]
        for name, embed in self.conds.items():
            parts.append(given_or_null(cond, f"vec:{name}", embed, self.nulls[name]).expand_as(level))
        own = torch.stack(parts, 1)
        if self.context is None:
            return own, None
        others, mask = self.context(cond, len(own))
        if mask is not None:
            mask = torch.cat([mask.new_ones(*mask.shape[:3], self.always), mask], 3)
        return torch.cat([own, others], 1), mask


def context(width: int, tokens: Mapping[str, int]) -> Context | None:
    """The context of a network, None if it has no `tok:*` conditions."""
    return Context(width, tokens) if tokens else None


def given_or_null(cond: Cond, key: str, embed: nn.Module, null: Tensor) -> Tensor:
    """The embedded condition `[B, ...]`, `null` in the rows it is withheld from, or null alone if it is absent."""
    if key not in cond:
        return null
    mask = keep_mask(cond, key)
    value = embed(cond[key])
    return value if mask is None else torch.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, null)


def stacked(x: Tensor, cond: Cond, maps: Mapping[str, int], dim: int) -> Tensor:
    """x with the `map:*` conditions behind its channels, which are dimension `dim`; zeros where one is withheld."""
    parts = [x]
    for name, channels in maps.items():
        key = f"map:{name}"
        if key not in cond:
            shape = list(x.shape)
            shape[dim] = channels
            parts.append(x.new_zeros(shape))
        else:
            keep = keep_mask(cond, key)
            parts.append(cond[key] if keep is None else cond[key] * keep.reshape(-1, *[1] * (x.ndim - 1)))
    return torch.cat(parts, dim) if maps else x
