"""Conditions: a dict of tensors whose key says how the network takes them.

`vec:*` `[B, width]` modulates every layer (adaLN), `map:*` `[B, C, H, W]` is concatenated to the channels of x, `tok:*`
`[B, n, width]` is attended to. A condition that is not in the dict is withheld from the whole batch; one withheld from some
rows only has a mask `keep:<key>` `[B]` of booleans beside it. The network puts something learned in a withheld one's place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core import rng

Cond = dict[str, Tensor]

KEEP = "keep:"


def kept(cond: Cond, key: str) -> Tensor | None:
    """Rows that have the condition, `[B]` of booleans; None if all have it. The key must be in cond."""
    return cond.get(KEEP + key)


def keys(cond: Cond) -> list[str]:
    """The conditions in the dict, masks left out."""
    return [key for key in cond if not key.startswith(KEEP)]


def drop(cond: Cond, p: float, seed: rng.Seed, ids: Tensor) -> Cond:
    """Withhold every condition of a row together with probability p, as classifier-free guidance is trained.

    Row i's fate is a pure function of (seed, ids[i]). Ho & Salimans 2022 (arXiv 2207.12598).
    """
    if p == 0 or not cond:
        return cond
    keep = rng.uniform((), seed, ids) >= p
    masks = {}
    for key in keys(cond):
        before = kept(cond, key)
        here = keep.to(cond[key].device)
        masks[KEEP + key] = here if before is None else before & here
    return {**cond, **masks}


def without(cond: Cond, *names: str) -> Cond:
    """The conditions but for the named ones (and their masks); without names, no condition at all."""
    gone = names or tuple(keys(cond))
    return {key: value for key, value in cond.items() if key.removeprefix(KEEP) not in gone}


def rows(cond: Cond, index: Tensor | slice) -> Cond:
    """Some rows of every condition."""
    return {key: value[index] for key, value in cond.items()}


def to(cond: Cond, device: torch.device) -> Cond:
    """Every condition on the device."""
    return {key: value.to(device) for key, value in cond.items()}
