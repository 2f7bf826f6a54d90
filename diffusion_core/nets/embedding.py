"""How a network takes its noise level and conditions: vectors, maps and context tokens, each of which may be withheld."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from diffusion_core.conditioning import Cond, keep_mask

# Tokens [B, M, width], and a mask [B, 1, 1, M] of those that may be attended to (None: all).
ContextTokens = tuple[Tensor, Tensor | None]


def group_by_kind(conds: Mapping[str, int] | None, net: str, kinds: Collection[str]) -> dict[str, dict[str, int]]:
    """The widths of a network's conditions by kind, then by name: {"vec": {"category": 4}, "map": {}, ...}.

    Raises ValueError if the network called `net` does not take one of the kinds.
    """
    out: dict[str, dict[str, int]] = {kind: {} for kind in ("vec", "map", "tok")}
    for key, width in (conds or {}).items():
        kind, _, name = key.partition(":")
        if kind not in kinds or kind not in out or not name:
            allowed = ", ".join(f"{kind}:*" for kind in kinds)
            raise ValueError(f"the {net} takes {allowed} conditions, not {key}")
        out[kind][name] = width
    return out


class FourierFeatures(nn.Module):
    """A number `[B]` as cosines and sines `[B, width]` of geometrically spaced frequencies."""

    frequencies: Tensor

    def __init__(self, width: int, lowest: float = 0.5, highest: float = 64.0) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.logspace(0, 1, width // 2, base=highest / lowest) * lowest, False)

    def forward(self, c: Tensor) -> Tensor:
        angles = c[:, None] * self.frequencies.to(c)
        return torch.cat([angles.cos(), angles.sin()], 1) * math.sqrt(2)


class Embedding(nn.Module):
    """Noise level and `vec:*` conditions as one vector `[B, width]`.

    `vectors` gives each condition's width by name. A learned vector replaces a condition that is withheld.
    """

    def __init__(self, width: int, vectors: Mapping[str, int]) -> None:
        super().__init__()
        self.level = nn.Sequential(FourierFeatures(width), nn.Linear(width, width))
        self.conds = nn.ModuleDict({name: nn.Linear(size, width) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.zeros(width)) for name in vectors})
        self.out = nn.Linear(width, width)

    def forward(self, c_noise: Tensor, cond: Cond) -> Tensor:
        total = self.level(c_noise)
        for name, embed in self.conds.items():
            total = total + embed_or_null(cond, f"vec:{name}", embed, self.nulls[name])
        return silu(self.out(silu(total)))


class ContextEmbedding(nn.Module):
    """All `tok:*` conditions as one sequence of `ContextTokens` `[B, 1 + M, width]`.

    `tokens` gives each condition's width by name. The first token is learned and never withheld, so that there is always
    something to attend to. The tokens have no positional embedding: their order does not matter.
    """

    def __init__(self, width: int, tokens: Mapping[str, int]) -> None:
        super().__init__()
        self.embed = nn.ModuleDict({name: nn.Linear(size, width) for name, size in tokens.items()})
        self.null = nn.Parameter(torch.randn(1, 1, width) * 0.02)

    def forward(self, cond: Cond, batch: int) -> ContextTokens:
        sequence = [self.null.expand(batch, -1, -1)]
        masks = [torch.ones(batch, 1, dtype=torch.bool, device=self.null.device)]
        any_withheld = False
        for name, embed in self.embed.items():
            key = f"tok:{name}"
            if key in cond:
                keep = keep_mask(cond, key)
                any_withheld = any_withheld or keep is not None
                sequence.append(embed(cond[key]))
                ones = torch.ones(sequence[-1].shape[:2], dtype=torch.bool, device=self.null.device)
                masks.append(ones if keep is None else ones & keep[:, None])
        mask = torch.cat(masks, 1)[:, None, None] if any_withheld else None  # attention without a mask is faster
        return torch.cat(sequence, 1), mask


class ConditionTokens(nn.Module):
    """Noise level and all conditions as `ContextTokens` `[B, T, width]`, for networks in which every input is a token.

    The level and each `vec:*` condition are one token each (a learned one replaces a condition that is withheld); the
    `ContextEmbedding` follows.
    """

    def __init__(self, width: int, vectors: Mapping[str, int], tokens: Mapping[str, int]) -> None:
        super().__init__()
        self.level = nn.Sequential(FourierFeatures(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.conds = nn.ModuleDict({name: nn.Linear(size, width) for name, size in vectors.items()})
        self.nulls = nn.ParameterDict({name: nn.Parameter(torch.randn(width) * 0.02) for name in vectors})
        self.context = context_embedding(width, tokens)

    def forward(self, c_noise: Tensor, cond: Cond) -> ContextTokens:
        level = self.level(c_noise)
        vectors = [level]
        for name, embed in self.conds.items():
            vectors.append(embed_or_null(cond, f"vec:{name}", embed, self.nulls[name]).expand_as(level))
        sequence = torch.stack(vectors, 1)
        if self.context is None:
            return sequence, None
        context, mask = self.context(cond, len(sequence))
        if mask is not None:
            mask = torch.cat([mask.new_ones(*mask.shape[:3], len(vectors)), mask], 3)
        return torch.cat([sequence, context], 1), mask


def context_embedding(width: int, tokens: Mapping[str, int]) -> ContextEmbedding | None:
    """The context embedding of a network, None if it has no `tok:*` conditions."""
    return ContextEmbedding(width, tokens) if tokens else None


def embed_or_null(cond: Cond, key: str, embed: nn.Module, null: Tensor) -> Tensor:
    """The embedded condition `[B, ...]` with `null` in rows that it is withheld from; `null` itself if it is absent."""
    if key not in cond:
        return null
    mask = keep_mask(cond, key)
    value: Tensor = embed(cond[key])
    return value if mask is None else torch.where(mask.reshape(-1, *[1] * (value.ndim - 1)), value, null)


def concat_maps(x: Tensor, cond: Cond, maps: Mapping[str, int], dim: int) -> Tensor:
    """x with the `map:*` conditions appended to its channels (dimension `dim`); zeros where one is withheld."""
    channels = [x]
    for name, count in maps.items():
        key = f"map:{name}"
        if key not in cond:
            shape = list(x.shape)
            shape[dim] = count
            channels.append(x.new_zeros(shape))
        else:
            keep = keep_mask(cond, key)
            channels.append(cond[key] if keep is None else cond[key] * keep.reshape(-1, *[1] * (x.ndim - 1)))
    return torch.cat(channels, dim) if maps else x
