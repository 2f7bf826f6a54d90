"""Samples batch by batch; each batch is a block, so that other machines can draw some of them (see `tasks.common.blocks`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tasks.common.arrays import Arrays
from tasks.common.blocks import computed


@dataclass(frozen=True)
class Wanted:
    """Samples to draw, numbered from 0: `draw` gives those with some numbers, as an array with a row for each."""

    count: int
    draw: Callable[[Tensor], np.ndarray]


def in_batches(splits: Mapping[str, Wanted], batch: int, label: str) -> dict[str, np.ndarray]:
    """The samples of every split, drawn `batch` at a time."""

    def block(split: str, start: int) -> Arrays:
        ids = torch.arange(start, min(start + batch, splits[split].count))
        return {"samples": splits[split].draw(ids)}

    places = [(split, start) for split, wanted in splits.items() for start in range(0, wanted.count, batch)]
    drawn: dict[str, list[np.ndarray]] = {split: [] for split in splits}
    work = [partial(block, *place) for place in places]
    for (split, _), arrays in zip(places, computed(work, label), strict=True):
        drawn[split].append(arrays["samples"])
    return {split: np.concatenate(parts) for split, parts in drawn.items()}
