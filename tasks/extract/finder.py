"""Finds the persons in a picture: the first look, then the second pass and the second opinion if they are on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tasks.extract import second_pass
from tasks.extract.findings import Settings
from tasks.extract.landmarker import Landmarker, Person

Find = Callable[[np.ndarray], list[Person]]


@contextmanager
def finder(model: Path, settings: Settings) -> Iterator[Find]:
    """A function that finds the persons in an RGB picture, uint8 `[height, width, 3]`.

    Raises UserError if a model cannot be used.
    """
    with (
        Landmarker(model, settings.min_confidence, settings.max_people) as landmarker,
        _opinion(model, settings) as ask,
    ):

        def find(picture: np.ndarray) -> list[Person]:
            persons = landmarker.detect(picture)
            if settings.second_pass:
                persons = second_pass.search(
                    picture, persons, landmarker.detect, settings.second_pass, settings.max_people
                )
            return ask(picture, persons)

        yield find


@contextmanager
def _opinion(model: Path, settings: Settings) -> Iterator[Callable[[np.ndarray, list[Person]], list[Person]]]:
    """What the second opinion leaves of the persons found in a picture, and whom it adds."""
    chosen = settings.second_opinion
    if chosen is None:
        yield lambda _, persons: persons
        return
    from tasks.extract import movenet, second_opinion  # these import torch, which takes a second

    network = movenet.MoveNet(Path(chosen.path), chosen.sha256, chosen.side)
    with Landmarker(model, settings.min_confidence, centred=True) as landmarker:
        yield lambda picture, persons: second_opinion.search(
            picture, persons, network.detect(picture), landmarker.detect, chosen.agreement, settings.max_people
        )
