"""The training examples: all in memory, or read from the shards as they are needed, ahead of time by worker processes.

`Trainer.upcoming` tells beforehand which example is needed when, so reading ahead changes only the waiting time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_core.codecs import Affine
from diffusion_core.conditioning import Cond
from diffusion_core.training.trainer import Data
from tasks.common.errors import DataError
from tasks.common.subset import evenly_spaced
from tasks.config.params import Pictures, Poses
from tasks.dataset.shards import ShardDataset
from tasks.models import modality
from tasks.models.modality import Examples

FITTED = 4096  # examples that the codec is fitted to where not all fit into memory
AHEAD = 4  # batches that each worker reads ahead


class ExampleDataset(Dataset[tuple[Tensor, Tensor, Cond]]):
    """Examples in data units by index. Indices from len(dataset) on are the mirror images."""

    def __init__(self, dataset: ShardDataset, config: Poses | Pictures, categories: list[str]) -> None:
        self.dataset, self.config, self.categories = dataset, config, categories

    def __len__(self) -> int:
        return len(self.dataset) * (2 if self.config.mirror else 1)

    @property
    def keys(self) -> list[str]:
        """The sample key of each example; a mirror image has that of its original."""
        return self.dataset.keys * (2 if self.config.mirror else 1)

    def read(self, indices: Tensor) -> Examples:
        """The examples of indices `[B]`."""
        count = len(self.dataset)
        originals = self.dataset.take([i % count for i in indices.tolist()])
        both = modality.examples(originals, self.config, self.categories, mirrored=self.config.mirror)
        rows = torch.arange(len(indices)) + len(indices) * (indices >= count)
        return Examples(both.x0[rows], {key: value[rows] for key, value in both.cond.items()})

    def read_all(self) -> Examples:
        """All examples, the mirror images after the originals."""
        return modality.examples(self.dataset, self.config, self.categories, mirrored=self.config.mirror)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Cond]:
        batch = self.read(indices)
        return indices, batch.x0, batch.cond

    def bytes(self) -> int:
        """The memory that all examples would take."""
        one = self.read(torch.zeros(1, dtype=torch.int64))
        return len(self) * sum(t.numel() * t.element_size() for t in (one.x0, *one.cond.values()))


@dataclass
class Source:
    """The training examples in the network's units.

    `count`: how many. `digest`: their identity. `subset`: some of them, all where they are in memory. `data`: any by index.
    """

    count: int
    digest: str
    codec: Affine
    subset: Examples
    data: Data


def in_memory(dataset: ExampleDataset, per_coordinate: bool, pin: bool) -> Source:
    """All examples as tensors. Raises DataError if one of them is not finite."""
    raw = dataset.read_all()
    _check_finite(raw, dataset.keys)
    codec = modality.fit_codec(raw.x0, per_coordinate)
    examples = Examples(codec.encode(raw.x0), raw.cond)

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        x0, cond = examples.x0[index], {key: value[index] for key, value in examples.cond.items()}
        return (x0.pin_memory(), {key: value.pin_memory() for key, value in cond.items()}) if pin else (x0, cond)

    return Source(len(examples), digest(examples), codec, examples, data)


def from_shards(dataset: ExampleDataset, per_coordinate: bool) -> Source:
    """Examples that are read when they are needed; the codec is fitted to FITTED of them.

    The identity is that of the shards and, since the same shards may be turned into other examples, of those FITTED examples.
    Raises DataError if one of these is not finite.
    """
    indices = evenly_spaced(len(dataset), FITTED)
    raw = dataset.read(torch.tensor(indices, dtype=torch.int64))
    _check_finite(raw, [dataset.keys[i] for i in indices])
    codec = modality.fit_codec(raw.x0, per_coordinate)
    subset = Examples(codec.encode(raw.x0), raw.cond)
    shards = dataset.dataset
    identity = json.dumps([shards.digests(), shards.keys, shards.about, digest(subset)], sort_keys=True)

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        batch = dataset.read(index)
        return codec.encode(batch.x0), batch.cond

    return Source(len(dataset), hashlib.sha256(identity.encode()).hexdigest(), codec, subset, data)


def read_ahead(dataset: ExampleDataset, source: Source, upcoming: Iterator[Tensor], workers: int, pin: bool) -> Data:
    """The data of `source`, with the upcoming micro-batches decoded ahead by processes, into pinned memory for a GPU."""
    loader = iter(
        DataLoader(
            dataset,
            batch_size=None,  # the indices come in batches already
            sampler=upcoming,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=pin,
        )
    )
    waiting: list[tuple[Tensor, Tensor, Cond]] = []

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        if not waiting:
            waiting.extend(islice(loader, 1))
        if not waiting or not torch.equal(waiting[0][0], index):  # a measurement asks for other examples than the next
            return source.data(index)
        _, x0, cond = waiting.pop()
        return source.codec.encode(x0), cond

    return data


def digest(examples: Examples) -> str:
    """Sha256 of examples as the network gets them."""
    data = hashlib.sha256()
    for name, values in sorted({"x0": examples.x0, **examples.cond}.items()):
        data.update(f"{name}{tuple(values.shape)}".encode())
        data.update(values.contiguous().numpy().tobytes())
    return data.hexdigest()


def _check_finite(examples: Examples, keys: list[str]) -> None:
    """Raise DataError, naming the keys, if examples are not finite: a single one would spoil the codec for all."""
    bad = torch.zeros(len(examples), dtype=torch.bool)
    for values in (examples.x0, *examples.cond.values()):
        bad |= ~values.flatten(1).isfinite().all(1) if values.is_floating_point() else False
    if bad.any():
        names = sorted({keys[i] for i in bad.nonzero()[:, 0].tolist()})
        raise DataError(f"The shards hold samples with values that are not finite: {', '.join(names)}.")
