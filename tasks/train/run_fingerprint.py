"""The identity of a training: everything that decides its weights, and in words how two trainings differ.

A checkpoint is resumed only by a training with the same fingerprint. What changes the weights by rounding only is left out: the
number of ranks, the size of micro-batches, where examples are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tasks.common.code_digest import code_digest
from tasks.config.optimisation import KeptAverage, Optimisation

# Parameters that say how the work is done, and not what is computed.
LAYOUT = {"ranks", "sharded", "microbatch", "recompute", "offload", "workers", "memory_gb", "checkpoints_kept"}

# The code that decides the weights: the method, how examples and conditions are made of the shards, and the measurements by
# which early stopping chooses weights. A test compares this with the imports of the training stage.
CODE = (
    "diffusion_core/**/*.py",
    "tasks/train/*.py",
    "tasks/models/*.py",
    "tasks/config/nets.py",
    "tasks/common/images.py",
    "tasks/common/lazy.py",
    "tasks/common/motion.py",
    "tasks/common/skeleton.py",
    "tasks/common/subset.py",
    "tasks/dataset/crop.py",
    "tasks/dataset/frames.py",
    "tasks/dataset/padding.py",
    "tasks/dataset/pose_map.py",
    "tasks/dataset/shard_index.py",
    "tasks/dataset/shards.py",
    "tasks/metrics/*.py",
)

# Of that code, what only draws samples. It decides the weights if samples do (`keep: distance`, `stop.converged`) and if a
# model learns from the steps of a sampler (distillation). A test trains with every recipe and fails if a step or a loss uses
# it.
SAMPLING = (
    "diffusion_core/choices.py",
    "diffusion_core/inverse.py",
    "diffusion_core/method_tables.py",
    "diffusion_core/sampling/langevin.py",
    "diffusion_core/sampling/ode.py",
    "diffusion_core/sampling/solvers.py",
    "diffusion_core/sampling/timestep_search.py",
)

EXAMPLES, HELD_OUT, SOURCE_CODE = "the training examples", "the held-out examples", "the code"
DIGESTS = (EXAMPLES, HELD_OUT, SOURCE_CODE)  # too long to print

RunFingerprint = dict[str, str]


def of(config: Optimisation, examples: str, held_out: str, samplers: bool = False) -> RunFingerprint:
    """Each parameter of the model as JSON, and digests of the training and held-out examples (given) and of the code.

    `samplers`: whether the training uses the code of samplers even if no samples are compared.
    """
    parameters = config.model_dump(exclude=LAYOUT)
    if isinstance(config.keep, KeptAverage):
        # The width is chosen when the training has ended. What is trained depends on the averages that are tracked.
        parameters |= {
            "keep": "ema",
            "power_averages": config.snapshot_widths,
            "snapshot_images": config.snapshot_interval,
        }
    fingerprint = dict(_flat(parameters))
    code = code_digest(CODE, without=() if samplers or config.distance_samples else SAMPLING)
    digests = {EXAMPLES: examples, HELD_OUT: held_out, SOURCE_CODE: code}
    return fingerprint | digests | {"torch": torch.__version__}


def digest(fingerprint: RunFingerprint) -> str:
    """32 hexadecimal digits that name a training."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:32]


def model_digest(fingerprint: RunFingerprint, config: Optimisation) -> str:
    """32 hexadecimal digits that name the model: those of its training, unless the training can end in several models."""
    if isinstance(config.keep, KeptAverage):
        fingerprint = fingerprint | {"keep.ema": json.dumps(config.keep.ema)}
    return digest(fingerprint)


def difference(this: RunFingerprint, other: RunFingerprint) -> str:
    """The entries in which `other` differs from `this`, in words."""
    phrases = []
    for key in sorted(this.keys() | other.keys()):
        value, other_value = this.get(key, "absent"), other.get(key, "absent")
        if value == other_value:
            continue
        if key in DIGESTS:
            phrases.append(f"{key} changed")
        else:
            phrases.append(f"{key} was {other_value} and is {value} now")
    return ", ".join(phrases)


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value)
