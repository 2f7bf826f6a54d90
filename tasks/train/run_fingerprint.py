"""What decides the weights of a training, and how to say in words that two trainings are not the same.

What does not decide them, but for rounding, is left out: on how many ranks, in what pieces, how often it is looked at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tasks.common.code_digest import code_digest
from tasks.config.params import Pictures, Poses

# Keys that only say where and how the work is done, and what is kept of it on the way.
LAYOUT = {"ranks", "sharded", "microbatch", "recompute", "workers", "memory_gb", "checkpoints_kept"}
CODE = ("diffusion_core/**/*.py", "tasks/train/*.py", "tasks/models/*.py", "tasks/config/nets.py")

Origin = dict[str, str]


def of(config: Poses | Pictures, examples: str) -> Origin:
    """Each parameter, and digests of the examples (given) and of the code; all as text, by name."""
    origin = dict(_flat(config.model_dump(exclude=LAYOUT)))
    return origin | {"the examples": examples, "the code": code_digest(CODE), "torch": torch.__version__}


def digest(origin: Origin) -> str:
    """32 hexadecimal digits by which a training is known."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:32]


def difference(here: Origin, there: Origin) -> str:
    """In words, what of `there` is not as it is `here`."""
    told = []
    for key in sorted(here.keys() | there.keys()):
        mine, theirs = here.get(key, "absent"), there.get(key, "absent")
        if mine == theirs:
            continue
        told.append(
            f"{key} differ" if key in ("the examples", "the code") else f"{key} is {theirs} there and {mine} here"
        )
    return ", ".join(told).replace("the code differ", "the code differs")


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value)
