"""Where the training examples come from: memory, or the shards while they are needed, read ahead by worker processes.

Which example is needed when is known beforehand (`Trainer.upcoming`), so that reading ahead changes nothing but the wait.
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

FITTED = 4096  # examples from which the codec is made where they do not fit into memory
AHEAD = 4  # batches that each worker reads ahead


class Reader(Dataset[tuple[Tensor, Tensor, Cond]]):
    """Examples in data units by their numbers; from len(dataset) on they are the mirror images."""

    def __init__(self, dataset: ShardDataset, config: Poses | Pictures, categories: list[str]) -> None:
        self.dataset, self.config, self.categories = dataset, config, categories

    def __len__(self) -> int:
        return len(self.dataset) * (2 if self.config.mirror else 1)

    def read(self, indices: Tensor) -> Examples:
        """The examples of indices `[B]`."""
        count = len(self.dataset)
        some = self.dataset.take([i % count for i in indices.tolist()])
        both = modality.examples(some, self.config, self.categories, mirrored=self.config.mirror)
        rows = torch.arange(len(indices)) + len(indices) * (indices >= count)
        return Examples(both.x0[rows], {key: value[rows] for key, value in both.cond.items()})

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor, Cond]:
        part = self.read(indices)
        return indices, part.x0, part.cond

    def bytes(self) -> int:
        """What all of them would take in memory."""
        one = self.read(torch.zeros(1, dtype=torch.int64))
        return len(self) * sum(t.numel() * t.element_size() for t in (one.x0, *one.cond.values()))


@dataclass
class Source:
    """The training examples in the network's units: how many, what tells them from others, some of them, and all by number."""

    count: int
    digest: str
    codec: Affine
    some: Examples
    data: Data


def in_memory(reader: Reader, keys: list[str], per_coordinate: bool, pin: bool) -> Source:
    """All examples as tensors, checked to be finite numbers."""
    raw = modality.examples(reader.dataset, reader.config, reader.categories, mirrored=reader.config.mirror)
    _check(raw, keys)
    codec = modality.fit_codec(raw.x0, per_coordinate)
    examples = Examples(codec.encode(raw.x0), raw.cond)

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        x0, cond = examples.x0[index], {key: value[index] for key, value in examples.cond.items()}
        return (x0.pin_memory(), {key: value.pin_memory() for key, value in cond.items()}) if pin else (x0, cond)

    return Source(len(examples), digest(examples), codec, examples, data)


def from_shards(reader: Reader, keys: list[str], per_coordinate: bool) -> Source:
    """Examples that are read when they are asked for, until `read_ahead` takes over; the codec is made from FITTED of them."""
    some = reader.read(torch.tensor(evenly_spaced(len(reader), FITTED), dtype=torch.int64))
    _check(some, [keys[i] for i in evenly_spaced(len(reader), FITTED)])
    codec = modality.fit_codec(some.x0, per_coordinate)
    told = json.dumps([reader.dataset.digests(), reader.dataset.keys, reader.dataset.about], sort_keys=True)

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        part = reader.read(index)
        return codec.encode(part.x0), part.cond

    digest = hashlib.sha256(told.encode()).hexdigest()
    return Source(len(reader), digest, codec, Examples(codec.encode(some.x0), some.cond), data)


def read_ahead(reader: Reader, source: Source, upcoming: Iterator[Tensor], workers: int, pin: bool) -> Data:
    """The data of `source` with the upcoming micro-batches decoded ahead in processes, into pinned memory for a GPU."""
    loader = iter(
        DataLoader(
            reader,
            batch_size=None,  # the numbers come in batches already
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
        if not waiting or not torch.equal(
            waiting[0][0], index
        ):  # somebody takes a look at others than the training's next
            return source.data(index)
        _, x0, cond = waiting.pop()
        return source.codec.encode(x0), cond

    return data


def digest(examples: Examples) -> str:
    """What tells these examples, as the network gets them, from others."""
    data = hashlib.sha256()
    for name, values in sorted({"x0": examples.x0, **examples.cond}.items()):
        data.update(f"{name}{tuple(values.shape)}".encode())
        data.update(values.contiguous().numpy().tobytes())
    return data.hexdigest()


def _check(examples: Examples, keys: list[str]) -> None:
    """DataError with the keys of samples that hold anything but numbers: one would spoil the codec for all."""
    bad = torch.zeros(len(examples), dtype=torch.bool)
    for values in (examples.x0, *examples.cond.values()):
        bad |= ~values.flatten(1).isfinite().all(1) if values.is_floating_point() else False
    if bad.any():
        named = sorted({keys[i] for i in bad.nonzero()[:, 0].tolist()})
        raise DataError(f"The shards hold samples with values that are no finite numbers: {', '.join(named)}.")
