"""Conditions: a dict of tensors. The prefix of a key says how the network uses the condition.

`vec:*` `[B, width]` modulates every layer (adaLN). `map:*` `[B, C, H, W]` is concatenated to the channels of x (to the last
dimension if x is a set of tokens). `tok:*` `[B, n, width]` is attended to. A condition that is missing from the dict is
withheld from the whole batch. To withhold it from some rows only, a boolean mask `keep:<key>` `[B]` lies beside it. The
network replaces a withheld condition by a learned embedding.

Some entries describe the example or a condition and are never withheld: `vec:augment`, how the example was augmented (zeros
when sampling), `vec:<name>_level`, how much noise the condition <name> has, `mask:x` `[B, N]`, which tokens of x exist,
`segment:x` `[B, F]`, which frames of x belong to the same clip, `map:padding`, which parts of x are padding (zeros when
sampling), `map:latent` and `map:draft`, shaped as x, noise and a first reconstruction that mixed models get, and `weight:x`,
which broadcasts against x: what an error costs at each of its coordinates. The loss uses the last one, networks do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_core import rng

Cond = dict[str, Tensor]

KEEP = "keep:"
MASK = "mask:x"
SEGMENT = "segment:x"
AUGMENT = "vec:augment"
PADDING = "map:padding"
LATENT = "map:latent"
DRAFT = "map:draft"
LOW = "map:low"  # a picture of half the size, enlarged to that of x
WEIGHT = "weight:x"


def keep_mask(cond: Cond, key: str) -> Tensor | None:
    """Which rows have the condition, booleans `[B]`; None if all rows have it. The key must be in cond."""
    return cond.get(KEEP + key)


def kept(key: str, cond: Cond) -> Tensor | None:
    """The condition with zeros in rows that it is withheld from; None if it is absent."""
    mask = keep_mask(cond, key)
    if key not in cond or mask is None:
        return cond.get(key)
    return cond[key] * mask.reshape(-1, *[1] * (cond[key].ndim - 1))


def keys(cond: Cond) -> list[str]:
    """The keys of the conditions that can be withheld."""
    return [
        key
        for key in cond
        if not (
            key.startswith(KEEP) or key in (MASK, SEGMENT, AUGMENT, PADDING, LATENT, DRAFT, WEIGHT) or is_level(key)
        )
    ]


def is_level(key: str) -> bool:
    """Whether the key is `vec:<name>_level`, the noise level of the condition <name>."""
    return key.startswith("vec:") and key.endswith("_level")


def drop(cond: Cond, p: float, seed: rng.Seed, ids: Tensor, each: float = 0.0) -> Cond:
    """Condition dropout for classifier-free guidance: withhold all conditions of a row with probability p.

    In addition, each condition is withheld on its own with probability `each`, so that guidance can leave out one of several.
    What happens to row i is a function of (seed, ids[i]) alone. Ho & Salimans 2022 (arXiv 2207.12598); for several conditions
    Brooks et al. 2023 (arXiv 2211.09800), section 3.2.
    """
    names = keys(cond)
    if not names or not (p or each):
        return cond
    together = rng.uniform((), seed, ids) >= p
    alone = rng.uniform((len(names),), rng.fold(seed, 1), ids) >= each if each else None
    masks = {}
    for i, key in enumerate(names):
        keep = (together if alone is None else together & alone[:, i]).to(cond[key].device)
        before = keep_mask(cond, key)
        masks[KEEP + key] = keep if before is None else before & keep
    return {**cond, **masks}


def without(cond: Cond, *names: str) -> Cond:
    """The dict without the named conditions and their masks; if no name is given, without all that can be withheld."""
    withheld = names or tuple(keys(cond))
    return {key: value for key, value in cond.items() if key.removeprefix(KEEP) not in withheld}


def rows(cond: Cond, index: Tensor | slice) -> Cond:
    """The given rows of every condition."""
    return {key: value[index] for key, value in cond.items()}


def to_device(cond: Cond, device: torch.device) -> Cond:
    """All conditions, moved to the device."""
    return {key: value.to(device) for key, value in cond.items()}
