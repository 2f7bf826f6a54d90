"""Near-duplicates: pictures that show the same persons at the same moment once they are laid over each other.

Crops, rotations, mirror images, other colours, watermarks and neighbouring frames of one scene. The distance of two pictures
is the mean of two: 1 - correlation of the whole pictures (see `tasks.similarity`), and 1 - correlation inside the box around
the persons of one of them. Two people who stand on the same spot of a studio agree in the room but not in themselves, and a
crop that was recoloured agrees in both. The whole pictures may be at most one and a half times as far as the limit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.extract.poses_table import Poses
from tasks.similarity.alignment import Gallery, correlation_within, prepare
from tasks.similarity.near_pairs import NearPairs, near_pairs

WHOLE = 1.5  # times the limit: how far whole pictures may be


class Pictures(NamedTuple):
    """The different pictures of some rows of the poses table, in the order of their first row. Motion captures have none."""

    row: np.ndarray  # int64 [m]: the first row that shows each picture
    of_row: np.ndarray  # int64 [n]: the picture of each row, -1 if it has none
    gallery: Gallery
    persons: Tensor  # float32 [m, 4]: the box around its persons, in the coordinates of the alignment
    source: Tensor  # int64 [m]: number of its file


def pictures(table: Poses, rows: list[int]) -> Pictures:
    """The pictures of these rows; `row` and `of_row` count within `rows`."""
    pictured = table.pictured
    number: dict[tuple[str, int], int] = {}
    of_row = np.full(len(rows), -1)
    for at, i in enumerate(rows):
        if pictured[i]:
            of_row[at] = number.setdefault((table.source[i], int(table.frame[i])), len(number))
    shown = np.flatnonzero(of_row >= 0)
    row = np.full(len(number), len(rows))
    np.minimum.at(row, of_row[shown], shown)
    low, high = np.full((len(number), 2), np.inf), np.full((len(number), 2), -np.inf)
    of_table = np.array(rows, np.int64)
    box = aligned_boxes(table.bbox, table.size)[of_table[shown]]
    np.minimum.at(low, of_row[shown], box[:, :2])
    np.maximum.at(high, of_row[shown], box[:, 2:])
    sources: dict[str, int] = {}
    source = [sources.setdefault(table.source[i], len(sources)) for i in of_table[row].tolist()]
    return Pictures(
        row,
        of_row,
        prepare(table.thumbnail[of_table[row]], table.size[of_table[row]]),
        torch.from_numpy(np.concatenate([low, high], axis=1).astype(np.float32)),
        torch.tensor(source, dtype=torch.int64),
    )


def aligned_boxes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes `[n, 4]` (x0, y0, x1, y1, pixels) of pictures of these sizes `[n, 2]`, in the coordinates of the alignment:
    from the middle of the picture, in halves of its longer side."""
    half = np.maximum(sizes.max(axis=1, keepdims=True), 1) / 2
    scaled: np.ndarray = (boxes - np.tile(sizes, 2) / 2) / half
    return scaled.astype(np.float32)


def duplicates(these: Pictures, limit: float) -> NearPairs:
    """All pairs of pictures of different files with a distance of at most `limit`, and some that are farther."""
    pairs = near_pairs(these.gallery, these.gallery, WHOLE * limit, (these.source, these.source))
    return with_persons(these.gallery, these.gallery, pairs, these.persons[pairs.query])


def with_persons(queries: Gallery, references: Gallery, pairs: NearPairs, persons: Tensor) -> NearPairs:
    """The pairs with the mean of their distance and that inside a box of the query, `[p, 4]`, around its persons."""
    inside = correlation_within(
        queries, references, pairs.query, pairs.reference, pairs.mirrored, pairs.transform, persons
    )
    return pairs._replace(distance=(pairs.distance + 1 - inside) / 2)
