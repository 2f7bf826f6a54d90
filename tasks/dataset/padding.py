"""Which pixels of a crop are padding: a crop that reaches beyond its picture shows a blurred reflection there.

The metadata of a sample say which rectangle of its crop is real (`crop.real_part`), and nothing if all of it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

REAL = "real"  # key of the rectangle


def any_padding(metas: Sequence[Mapping[str, Any]]) -> bool:
    """Whether one of the samples with these metadata has padding."""
    return any(REAL in meta for meta in metas)


def padding_maps(metas: Sequence[Mapping[str, Any]], size: int) -> Tensor:
    """Maps float32 `[n, 1, size, size]` of samples whose crops are reduced to `size` pixels: 1 where padding is, else 0.

    A pixel beside the border of the real part counts as padding, because reducing a picture mixes neighbouring pixels.
    """
    out = torch.zeros(len(metas), 1, size, size)
    low, high = torch.arange(size) - 1.0, torch.arange(size) + 2.0  # of a pixel and its neighbours
    for row, meta in zip(out, metas, strict=True):
        if REAL in meta:
            left, top, right, bottom = meta[REAL]
            columns, rows = (
                ((first == 0) | (low >= first * size)) & ((last == 1) | (high <= last * size))
                for first, last in ((left, right), (top, bottom))
            )
            row[0] = (~(rows[:, None] & columns)).float()
    return out
