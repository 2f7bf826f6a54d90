"""Prior preservation for our own models: they go on learning what they draw themselves.

Ruiz et al. 2022 (arXiv 2208.12242). `.contrapposto/prior/` holds what was drawn, as shards; `.contrapposto/prior/<training>/`
holds it together with the samples of the training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_core.training import parallel
from tasks import paths
from tasks.common.images import encode_png
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset
from tasks.models import inputs
from tasks.models.sampler import Sampler

PER_SHARD = 1000  # samples
Sample = tuple[str, dict[str, bytes]]


def drawn(root: Path, sampler: Sampler, asked: ShardDataset, seed: int, sha256: str) -> ShardDataset:
    """Samples with what a model of poses or pictures draws for the conditions of others; drawn once.

    `sha256`: of the model. Rank 0 draws, the other ranks wait.
    """

    def samples() -> Iterator[Sample]:
        values = sampler.draw(sampler.model.examples(asked).cond, seed, torch.arange(len(asked)), label="prior")
        for i, made in enumerate(_files(values)):
            yield f"prior-{i:06d}", {"json": asked.read(i, "json"), "pose.npy": asked.read(i, "pose.npy"), **made}

    identity = [sha256, asked.identity(), sampler.how.sampling_json, seed]
    return _written(root / paths.PRIOR / _digest(identity), samples(), asked)


def _files(values: Tensor) -> Iterator[dict[str, bytes]]:
    """Pictures, or poses, as the files of a sample."""
    if values.ndim == 4:
        yield from ({"png": encode_png(picture)} for picture in inputs.as_pictures(values))
    else:
        yield from ({"pose.npy": shards.encode_pose(pose)} for pose in values.numpy())


def beside(root: Path, name: str, own: ShardDataset, prior: ShardDataset, pictured: bool) -> ShardDataset:
    """Own samples and those of the prior in turn, as many of both: the side that has fewer is repeated.

    `name`: of the training, whose copies of other samples are deleted. `pictured`: whether the samples have pictures.
    """
    members = ("png", "pose.npy", "json") if pictured else ("pose.npy", "json")
    samples = (
        (key, {member: side.read(i, member) for member in members})
        for side in (own, prior)
        for i, key in enumerate(side.keys)
    )
    folder = root / paths.PRIOR / name / _digest([own.identity(), prior.identity()])
    if parallel.ranks()[0] == 0:
        for other in folder.parent.glob("*/"):
            if other != folder:
                shutil.rmtree(other)
    together = _written(folder, samples, own)
    places = range(max(len(own), len(prior)))
    return together.take([place for i in places for place in (i % len(own), len(own) + i % len(prior))])


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def _written(folder: Path, samples: Iterable[Sample], like: ShardDataset) -> ShardDataset:
    """Shards of samples, if they are not there; rank 0 writes. `like`: what has the same origin and captions."""
    if parallel.ranks()[0] == 0 and not folder.is_dir():
        shards.write(folder, {"train": samples}, PER_SHARD, like.about, _embeddings(like))
    parallel.broadcast(None)  # wait for it
    return ShardDataset(folder, "train")


def _embeddings(dataset: ShardDataset) -> np.ndarray | None:
    """The embeddings of the captions of shards; None if they have none."""
    return dataset.texts_of(dataset.text["captions"]) if "text" in dataset.about else None
