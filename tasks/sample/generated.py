"""What the kinds of `generate` have in common: models, requests by category, rounds of sampling, the folder `generated/`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from tasks import paths
from tasks.common import files
from tasks.common.arrays import Arrays
from tasks.common.blocks import computed
from tasks.common.errors import UserError
from tasks.config.params import Generate, Params, validation_sentence
from tasks.config.sampling import SamplingChoices
from tasks.dataset import shards
from tasks.registry import model_registry
from tasks.registry.tracking import Store

SPLIT = "generated"
SAMPLES_PER_SHARD = 1000
ALL_KINDS = ("category", "count", "seed", "alias")  # of `Generate`

R = TypeVar("R", bound=SamplingChoices)


def models(params: Params, root: Path, named: Sequence[str] = ()) -> dict[str, Path]:
    """The folder of each model that `generate.kind` needs: those with `generate.alias`, or those that are named.

    `named`: MODEL=SHA256 for each. Raises UserError if there is no such alias or a name is missing, DataError if there is no
    model with the sha256.
    """
    settings = params.generate
    needed = {"picture": paths.MODELS, "motion": (paths.MOTION,), "video": (paths.MOTION, paths.VIDEO)}[settings.kind]
    if not named:
        store = Store(params.tracking, root)
        if settings.kind == "picture":
            return model_registry.fetch_all(store, root, settings.alias)
        return {model: model_registry.fetch(store, root, model, settings.alias) for model in needed}
    pairs = [re.fullmatch(r"(\w+)=([0-9a-f]{64})", name) for name in named]
    given = {pair[1]: pair[2] for pair in pairs if pair is not None}
    if len(given) < len(named) or not given.keys() >= set(needed):
        raise UserError(f"generate takes MODEL=SHA256 for each of {', '.join(needed)}; got {' '.join(named)}.")
    return {model: model_registry.find(params, root, model, sha256) for model, sha256 in given.items()}


def categories(settings: Generate, known: Sequence[str], numbers: range) -> list[str]:
    """The categories of the samples with these numbers: the one that is asked for, or all that the model knows in turn."""
    asked = [settings.category] if settings.category else known
    return [asked[number % len(asked)] for number in numbers]


def own_keys(kind: type[SamplingChoices]) -> set[str]:
    """The keys that a kind of request has besides those of sampling, `category` and `count`."""
    return set(kind.model_fields) - set(SamplingChoices.model_fields) - {"category", "count"}


def request_of(kind: type[R], settings: Generate, choice: SamplingChoices, category: str) -> R:
    """The request for a category, sampled as `choice` says. Raises UserError if a value is not allowed."""
    given = {"category": category, **settings.model_dump(include=own_keys(kind))}
    given |= {key: getattr(choice, key) for key in SamplingChoices.model_fields}
    try:
        return kind(**given)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), "params.yaml: generate", given)) from error


def in_rounds(names: Sequence[str], sample: Callable[[str, Tensor], Arrays], size: int, label: str) -> Arrays:
    """Sample i of category `names[i]`, for all i. `sample` gets a category and at most `size` numbers, and gives arrays with a
    row for each.

    Such a round is a block (see `tasks.common.blocks`). Raises UserError if `sample` raises ValueError: the model cannot be
    asked for this.
    """

    def block(category: str, some: Tensor) -> Arrays:
        try:
            return sample(category, some)
        except ValueError as error:
            raise UserError(f"params.yaml: generate: {error}.") from error

    numbers = {
        category: torch.tensor([number for number, name in enumerate(names) if name == category])
        for category in dict.fromkeys(names)
    }
    rounds = [(category, some) for category, every in numbers.items() for some in every.split(size)]
    parts = list(computed([partial(block, *one) for one in rounds], label))
    order = torch.cat([some for _, some in rounds]).argsort().numpy()
    return {field: np.concatenate([part[field] for part in parts])[order] for field in parts[0]}


def key(settings: Generate, number: int) -> str:
    """The key of a sample in the shards, and the name of its files."""
    return f"{SPLIT}-{settings.seed}-{number:06d}"


@contextmanager
def new_folder(
    folder: Path, samples: Iterable[tuple[str, dict[str, bytes]]], about: Mapping[str, Any]
) -> Iterator[Path]:
    """A new `generated/` with the samples as shards; it replaces the old one when the context is left without an error."""
    with files.new_folder(folder) as temporary:
        written = temporary / "shards"
        shards.write(written, {SPLIT: samples}, SAMPLES_PER_SHARD, about)
        for path in written.iterdir():
            path.rename(temporary / path.name)
        written.rmdir()
        yield temporary


def write_asked(folder: Path, settings: Generate, kind: type[SamplingChoices], rate: float) -> None:
    """Write `generated.json`: what was asked for, and the frames per second."""
    asked = settings.model_dump(include={*own_keys(kind), *ALL_KINDS})
    files.write_json(folder / "generated.json", {"kind": settings.kind, **asked, "rate": rate})
