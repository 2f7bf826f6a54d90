"""The training examples: all in memory, or read from the shards as they are needed, ahead of time by worker processes.

`Trainer.upcoming` tells beforehand which example is needed when, so reading ahead changes only the waiting time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from diffusion_core import rng
from diffusion_core.codecs import Affine, Latent
from diffusion_core.conditioning import Cond
from diffusion_core.rng import Stream
from diffusion_core.training.trainer import Data
from tasks.common import pool
from tasks.common.errors import DataError
from tasks.common.lazy import Lazy
from tasks.common.subset import evenly_spaced
from tasks.config.motion import MotionModel
from tasks.config.params import Pictures
from tasks.dataset.padding import any_padding
from tasks.dataset.shards import ShardDataset
from tasks.models import conditioning, inputs
from tasks.models.conditioning import AnyModel
from tasks.models.inputs import Examples
from tasks.models.motion_codec import MotionCodec
from tasks.train import latent_cache

FITTED = 4096  # examples that the codec is fitted to where not all fit into memory
AHEAD = 4  # batches that each worker reads ahead


class ExampleDataset(Dataset[tuple[list[int], Tensor, Cond]]):
    """Examples in data units by index: the originals, then their mirror images, then jittered copies of all these.

    `factor`: that of the codec; pose maps and weights have the resolution of its latents, the pictures stay pixels. `padded`:
    whether a picture has padding, here or in what is trained on beside; if so, the conditions of all say where, and padding has
    no weight.
    """

    def __init__(
        self, dataset: ShardDataset, config: AnyModel, categories: list[str], factor: int = 1, padded: bool = False
    ) -> None:
        self.dataset, self.config, self.categories, self.factor = dataset, config, categories, factor
        self.padded = padded or (isinstance(config, Pictures) and any_padding(dataset.metas()))

    def __len__(self) -> int:
        return self.uncopied * (1 + self.config.copies)

    @property
    def uncopied(self) -> int:
        """How many examples there are without the jittered copies."""
        return len(self.dataset) * (2 if self.config.mirror else 1)

    @property
    def keys(self) -> Sequence[str]:
        """The sample key of each example; mirror images and copies have that of their original."""
        return Lazy(len(self), lambda i: self.dataset.key(i % len(self.dataset)))

    def read(self, indices: Tensor) -> Examples:
        """The examples of indices `[B]`."""
        count = len(self.dataset)
        originals = self.dataset.take([i % count for i in indices.tolist()])
        both = self._unfinished(originals)
        rows = torch.arange(len(indices)) + len(indices) * (indices % self.uncopied >= count)
        return self._finished(Examples(both.x0[rows], {key: value[rows] for key, value in both.cond.items()}), indices)

    def read_all(self) -> Examples:
        """All examples."""
        plain = self._unfinished(self.dataset)
        parts = [
            self._finished(plain, torch.arange(len(plain)) + k * len(plain)) for k in range(1 + self.config.copies)
        ]
        cond = {key: torch.cat([part.cond[key] for part in parts]) for key in parts[0].cond}
        return Examples(torch.cat([part.x0 for part in parts]), cond)

    def _unfinished(self, part: ShardDataset) -> Examples:
        mirrored = self.config.mirror
        return inputs.examples(part, self.config, self.categories, mirrored, padded=self.padded)

    def _finished(self, plain: Examples, indices: Tensor) -> Examples:
        """The examples of these indices, given what they are without jitter, at full resolution."""
        x0, cond = plain.x0, plain.cond
        copied = indices >= self.uncopied
        if copied.any():
            seed = rng.fold(self.config.seed, Stream.JITTER)
            part = {key: value[copied] for key, value in cond.items()}
            moved, told = conditioning.jittered(x0[copied], part, seed, indices[copied])
            x0, cond = x0.clone(), {key: value.clone() for key, value in cond.items()}
            x0[copied] = moved
            for key, value in told.items():
                cond[key][copied] = value
        if isinstance(self.config, Pictures):
            cond = conditioning.weights(cond, self.config.body_weight)
        return Examples(x0, conditioning.at_latents(cond, self.factor))

    def __getitem__(self, rows: list[int]) -> tuple[list[int], Tensor, Cond]:
        batch = self.read(torch.tensor(rows))
        return rows, batch.x0, batch.cond

    def bytes(self) -> int:
        """The memory that all examples would take."""
        one = self.read(torch.zeros(1, dtype=torch.int64))
        return len(self) * sum(t.numel() * t.element_size() for t in (one.x0, *one.cond.values()))


class Readable(Protocol):
    """Examples by index: ExampleDataset, or the upscaler's crops."""

    dataset: ShardDataset
    config: Any

    @property
    def keys(self) -> Sequence[str]:
        """The sample key of each example."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Examples:
        """The examples of indices `[B]`, in data units."""


@dataclass
class Source:
    """The training examples in the network's units.

    `count`: how many. `digest`: their identity. `subset`: some of them, all where they are in memory. `data`: any by index.
    `encoded`: (indices, examples in data units) -> the latter in the network's units.
    """

    count: int
    digest: str
    codec: Affine | Latent
    subset: Examples
    data: Data
    encoded: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Encoder:
    """A codec of pictures, where its latents are kept on disk, and what computes them."""

    codec: Latent
    folder: Path
    device: torch.device

    def latents(self, pictures: Callable[[Tensor], Tensor], count: int, identity: str) -> Tensor:
        """The latents of `pictures(indices)` for all indices, see `latent_cache`."""
        return latent_cache.latents(self.folder, self.codec, pictures, count, identity, self.device)


def _fitted(dataset: Readable, x0: Tensor, per_coordinate: bool) -> Affine:
    """The affine codec for these examples; of clips, each frame counts as one, so that single poses have the same codec."""
    if not isinstance(dataset.config, MotionModel):
        return inputs.fit_codec(x0, per_coordinate)
    plain = inputs.fit_codec(x0.flatten(0, 1), per_coordinate)  # refuses examples that are all the same
    if dataset.config.sharpening or dataset.config.world_feet:
        return MotionCodec.fit(x0, inputs.DATA_SD, dataset.config.sharpening, dataset.config.world_feet)
    return plain


def in_memory(
    dataset: ExampleDataset,
    per_coordinate: bool,
    pin: bool,
    encoder: Encoder | None = None,
    affine: Affine | None = None,
) -> Source:
    """All examples as tensors; without an encoder or an affine codec, an affine one is fitted to them.

    Raises DataError if one of them is not finite.
    """
    raw = dataset.read_all()
    check_finite(raw, dataset.keys)
    codec: Affine | Latent
    if encoder is None:
        codec = affine or _fitted(dataset, raw.x0[: dataset.uncopied], per_coordinate)
        examples = Examples(codec.encode(raw.x0), raw.cond)
    else:
        codec = encoder.codec
        identity = digest(Examples(raw.x0, {}))
        examples = Examples(encoder.latents(lambda i: raw.x0[i], len(raw), identity).clone(), raw.cond)

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        x0, cond = examples.x0[index], {key: value[index] for key, value in examples.cond.items()}
        return (x0.pin_memory(), {key: value.pin_memory() for key, value in cond.items()}) if pin else (x0, cond)

    return Source(len(examples), digest(examples), codec, examples, data, lambda index, _: examples.x0[index])


def from_shards(
    dataset: Readable,
    per_coordinate: bool,
    encoder: Encoder | None = None,
    affine: Affine | None = None,
    fitted: int = FITTED,
) -> Source:
    """Examples that are read when they are needed; without an encoder or an affine codec, an affine one is fitted to `fitted`
    of them.

    The identity is that of the shards and, since the same shards may be turned into other examples, of those `fitted`
    examples. Raises DataError if one of these is not finite.
    """
    indices = evenly_spaced(len(dataset), fitted)
    raw = dataset.read(torch.tensor(indices, dtype=torch.int64))
    keys = dataset.keys
    check_finite(raw, [keys[i] for i in indices])
    codec: Affine | Latent
    codec = (affine or _fitted(dataset, raw.x0, per_coordinate)) if encoder is None else encoder.codec
    stored = dataset.dataset.identity()
    encoded: Callable[[Tensor, Tensor], Tensor]  # indices and their examples -> in the network's units
    if encoder is None:

        def encoded(indices: Tensor, x0: Tensor) -> Tensor:
            return codec.encode(x0)
    else:
        view = dataset.config.model_dump(include={"size", "mirror", "copies", "seed"})
        identity = json.dumps([stored, view, digest(raw)], sort_keys=True)
        kept = encoder.latents(lambda i: dataset.read(i).x0, len(dataset), identity)

        def encoded(indices: Tensor, x0: Tensor) -> Tensor:
            return kept[indices]

    subset = Examples(encoded(torch.tensor(indices, dtype=torch.int64), raw.x0), raw.cond)
    identity = json.dumps([stored, digest(subset)], sort_keys=True)

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        batch = dataset.read(index)
        return encoded(index, batch.x0), batch.cond

    return Source(len(dataset), hashlib.sha256(identity.encode()).hexdigest(), codec, subset, data, encoded)


def read_ahead(
    dataset: Dataset[tuple[list[int], Tensor, Cond]],
    source: Source,
    upcoming: Iterator[Tensor],
    workers: int,
    pin: bool,
) -> Data:
    """The data of `source`, with the upcoming micro-batches decoded ahead by processes, into pinned memory for a GPU."""
    if workers:
        pool.preload(__name__)
    loader = iter(
        DataLoader(
            dataset,
            batch_size=None,  # the indices come in batches already
            sampler=(index.tolist() for index in upcoming),
            multiprocessing_context=pool.CONTEXT if workers else None,
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            pin_memory=pin,
        )
    )
    waiting: list[tuple[list[int], Tensor, Cond]] = []

    def data(index: Tensor) -> tuple[Tensor, Cond]:
        if not waiting:
            waiting.extend(islice(loader, 1))
        if not waiting or waiting[0][0] != index.tolist():  # a measurement asks for other examples than the next
            return source.data(index)
        _, x0, cond = waiting.pop()
        return source.encoded(index, x0), cond

    return data


def digest(examples: Examples) -> str:
    """Sha256 of examples as the network gets them."""
    data = hashlib.sha256()
    for name, values in sorted({"x0": examples.x0, **examples.cond}.items()):
        data.update(f"{name}{tuple(values.shape)}".encode())
        data.update(values.contiguous().numpy().tobytes())
    return data.hexdigest()


def check_finite(examples: Examples, keys: Sequence[str]) -> None:
    """Raise DataError, naming the keys, if examples are not finite: a single one would spoil the codec for all."""
    bad = torch.zeros(len(examples), dtype=torch.bool)
    for values in (examples.x0, *examples.cond.values()):
        bad |= ~values.flatten(1).isfinite().all(1) if values.is_floating_point() else False
    if bad.any():
        names = sorted({keys[i] for i in bad.nonzero()[:, 0].tolist()})
        raise DataError(f"The shards hold samples with values that are not finite: {', '.join(names)}.")
