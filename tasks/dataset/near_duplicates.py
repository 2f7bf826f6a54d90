"""Near-duplicates: pictures that show the same persons at the same moment once they are laid over each other.

Crops, rotations, mirror images, other colours, watermarks and neighbouring frames of one scene. The distance of two pictures
is the mean of two: 1 - correlation of the whole pictures (see `tasks.similarity`), and 1 - correlation inside the boxes around
their persons. Two people who stand on the same spot of a studio agree in the room but not in themselves, and a
crop that was recoloured agrees in both. The whole pictures may be at most one and a half times as far as the limit.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tasks.common.arrays import Arrays
from tasks.common.blocks import computed
from tasks.extract.poses_table import Poses
from tasks.similarity.alignment import correlation_within
from tasks.similarity.candidates import candidates, together
from tasks.similarity.gallery import Gallery, inverse, prepare
from tasks.similarity.near_pairs import NearPairs, near_pairs

BLOCK = 4096  # pictures whose candidates are searched for by one slice
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
    pairs = near_pairs(these.gallery, these.gallery, WHOLE * limit, (these.source, these.source), _search)
    persons = these.persons[pairs.query], these.persons[pairs.reference]
    return with_persons(these.gallery, these.gallery, pairs, persons)


def _search(
    queries: Gallery, references: Gallery, k: int, groups: tuple[Tensor, Tensor] | None, least: float
) -> tuple[Tensor, Tensor]:
    """`candidates.candidates` in blocks of queries, so that other machines can search for some (see `tasks.common.blocks`).

    A block holds whole batches of the search, so that it has the same bits.
    """
    batch = together(len(references))
    rows = batch * max(1, BLOCK // batch)

    def block(start: int) -> Arrays:
        part = slice(start, start + rows)
        own = None if groups is None else (groups[0][part], groups[1])
        index, transforms = candidates(queries.rows(part), references, k, own, least)
        return {"index": index.numpy(), "start": transforms.numpy()}

    found = list(computed([partial(block, start) for start in range(0, len(queries), rows)], "near-duplicates"))
    if not found:
        return candidates(queries, references, k, groups, least)
    index, transforms = (np.concatenate([arrays[name] for arrays in found]) for name in ("index", "start"))
    return torch.from_numpy(index), torch.from_numpy(transforms)


def with_persons(queries: Gallery, references: Gallery, pairs: NearPairs, persons: tuple[Tensor, Tensor]) -> NearPairs:
    """The pairs with the mean of their distance and that inside the boxes around the persons of either picture, `[p, 4]` each
    in its own coordinates: the larger of the two, since in one box there may be the other's empty room."""
    inside = [
        correlation_within(queries, references, pairs.query, pairs.reference, pairs.mirrored, pairs.transform, boxes)
        for boxes in (persons[0], moved(persons[1], pairs, back=True))
    ]
    return pairs._replace(distance=(pairs.distance + 1 - torch.minimum(*inside)) / 2)


def moved(boxes: Tensor, pairs: NearPairs, back: bool = False) -> Tensor:
    """Boxes `[p, 4]` of the queries where the alignment puts them in the references; or `back`, those of the references."""
    x, y = boxes[:, [0, 2, 0, 2]], boxes[:, [1, 1, 3, 3]]
    flip = torch.where(pairs.mirrored, -1.0, 1.0)[:, None]
    transform = inverse(pairs.transform) if back else pairs.transform
    a, b, dx, dy = transform.T[:, :, None]
    x = x if back else flip * x
    across, down = a * x - b * y + dx, b * x + a * y + dy
    across = flip * across if back else across
    return torch.stack([across.amin(1), down.amin(1), across.amax(1), down.amax(1)], dim=1)
