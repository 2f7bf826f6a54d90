"""Conditions: a dict of tensors whose key says how the network takes them.

`vec:*` `[B, width]` modulates every layer (adaLN), `map:*` `[B, C, H, W]` is concatenated to the channels of x (to the last
dimension where x is a set of tokens), `tok:*` `[B, n, width]` is attended to. A condition that is not in the dict is withheld
from the whole batch; one withheld from some rows only has a mask `keep:<key>` `[B]` of booleans beside it. The network puts
something learned in a withheld one's place.

Two entries say what an example is rather than what is wanted, and are never withheld: `vec:augment`, how it was transformed
(zeros in sampling), and `mask:x` `[B, N]`, which tokens of x there are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core import rng

Cond = dict[str, Tensor]

KEEP = "keep:"
MASK = "mask:x"
AUGMENT = "vec:augment"


def keep_mask(cond: Cond, key: str) -> Tensor | None:
    """Rows that have the condition, `[B]` of booleans; None if all have it. The key must be in cond."""
    return cond.get(KEEP + key)


def keys(cond: Cond) -> list[str]:
    """The conditions in the dict that can be withheld."""
    return [key for key in cond if not key.startswith(KEEP) and key not in (MASK, AUGMENT)]


def drop(cond: Cond, p: float, seed: rng.Seed, ids: Tensor, each: float = 0.0) -> Cond:
    """Withhold all conditions of a row together with probability p, as classifier-free guidance is trained.

    Beside that each condition is withheld by itself with probability `each`, so that guidance may leave out one of several.
    Row i's fate is a pure function of (seed, ids[i]). Ho & Salimans 2022 (arXiv 2207.12598); Brooks et al. 2023 (arXiv
    2211.09800), section 3.2, for several conditions.
    """
    names = keys(cond)
    if not names or not (p or each):
        return cond
    together = rng.uniform((), seed, ids) >= p
    alone = rng.uniform((len(names),), rng.fold(seed, 1), ids) >= each if each else None
    masks = {}
    for i, key in enumerate(names):
        keep = together if alone is None else together & alone[:, i]
        before = keep_mask(cond, key)
        here = keep.to(cond[key].device)
        masks[KEEP + key] = here if before is None else before & here
    return {**cond, **masks}


def without(cond: Cond, *names: str) -> Cond:
    """The conditions but for the named ones (and their masks); without names, none that can be withheld."""
    gone = names or tuple(keys(cond))
    return {key: value for key, value in cond.items() if key.removeprefix(KEEP) not in gone}


def rows(cond: Cond, index: Tensor | slice) -> Cond:
    """Some rows of every condition."""
    return {key: value[index] for key, value in cond.items()}


def to(cond: Cond, device: torch.device) -> Cond:
    """Every condition on the device."""
    return {key: value.to(device) for key, value in cond.items()}
