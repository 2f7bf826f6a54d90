"""What the kinds of `generate` have in common: requests by category, rounds of sampling, and the folder `generated/`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Generate, validation_sentence
from tasks.config.sampling import SamplingChoices
from tasks.dataset import shards

SPLIT = "generated"
SAMPLES_PER_SHARD = 1000
ALL_KINDS = ("category", "count", "seed", "alias")  # of `Generate`

R = TypeVar("R", bound=SamplingChoices)
T = TypeVar("T")

log = logging.getLogger(__name__)


def categories(settings: Generate, known: Sequence[str]) -> list[str]:
    """The category of each sample: the one that is asked for, or all that the model knows in turn."""
    asked = [settings.category] if settings.category else known
    return [asked[number % len(asked)] for number in range(settings.count)]


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


def in_rounds(names: Sequence[str], sample: Callable[[str, Tensor], Iterable[T]], size: int, what: str) -> list[T]:
    """Sample i of category `names[i]`, for all i. `sample` gets a category and at most `size` numbers at a time.

    `what` names the samples in the log. Raises UserError if `sample` raises ValueError: the model cannot be asked for this.
    """
    made: dict[int, T] = {}
    for category in dict.fromkeys(names):
        numbers = torch.tensor([number for number, name in enumerate(names) if name == category])
        for some in numbers.split(size):
            try:
                made |= dict(zip(some.tolist(), sample(category, some), strict=True))
            except ValueError as error:
                raise UserError(f"params.yaml: generate: {error}.") from error
            log.info(f"{len(made)} of {len(names)} {what}")
    return [made[number] for number in range(len(names))]


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
