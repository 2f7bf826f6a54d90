"""Pictures made ready for alignment: their details at several sizes, and the coordinates in which transforms are given.

A point of a picture is a pair (x, y) from the middle of its square, in halves of the square's side. A similarity transform is
four numbers: real and imaginary part of its factor, and the shift in x and y.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import faiss
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from tasks.common.thumbnail import SIDE, content, thumbnail

LEVELS = (12, 24, 48)  # pixels along the side, coarse to fine
QUANTUM = 1 / 32  # details are stored as int8 in these steps
AT_ONCE = 128  # pictures or pairs whose arrays fit a core's cache
_LISTS = 4.0  # of the inverted index, times the root of the number of pictures
_SAMPLED = 64  # pictures for each list, of which the lists are learned


@dataclass(frozen=True)
class Gallery:
    """Pictures made ready for alignment. About 6 kB each."""

    luma: Tensor  # uint8 [n, 48, 48], thumbnails
    extent: Tensor  # float32 [n, 2]: width and height of the content, in parts of the square
    levels: tuple[Tensor, ...]  # int8 [n, s, s] for s in LEVELS: details in steps of _QUANTUM

    def __len__(self) -> int:
        return len(self.extent)

    def rows(self, rows: slice) -> Gallery:
        """Some of the pictures."""
        return Gallery(self.luma[rows], self.extent[rows], tuple(level[rows] for level in self.levels))

    @cached_property
    def coarse(self) -> Tensor:
        """The `descriptors` of all pictures, float32 `[n, 144]`."""
        parts = [torch.zeros(0, LEVELS[0] ** 2)]
        parts += [descriptors(*part) for part in zip(self.luma.split(1024), self.extent.split(1024), strict=True)]
        return torch.cat(parts)

    @cached_property
    def inverted(self) -> faiss.IndexIVFFlat:
        """The descriptors in the lists of an inverted file, by inner product (Johnson et al. 2017, arXiv 1702.08734)."""
        rows = self.coarse.numpy()
        lists = max(1, round(_LISTS * len(rows) ** 0.5))
        learned_of = rows[:: max(1, len(rows) // (_SAMPLED * lists))]
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # the same bits whatever the number of cores
        try:
            index = faiss.IndexIVFFlat(
                faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT
            )
            index.cp.min_points_per_centroid = 1  # FAISS prints a warning for fewer
            index.train(np.ascontiguousarray(learned_of))
            index.add(rows)
        finally:
            faiss.omp_set_num_threads(threads)
        return index


def gallery(pictures: Iterable[np.ndarray]) -> Gallery:
    """Pictures, RGB or grey, uint8 `[height, width(, 3)]` of any sizes, made ready."""
    small, sizes = [], []
    for picture in pictures:
        small.append(thumbnail(picture))
        sizes.append((picture.shape[1], picture.shape[0]))
    return prepare(np.array(small, np.uint8).reshape(-1, SIDE, SIDE), np.array(sizes, np.int64).reshape(-1, 2))


def prepare(thumbnails: np.ndarray, sizes: np.ndarray) -> Gallery:
    """Thumbnails, uint8 `[n, 48, 48]` (see `thumbnail`), of pictures of these sizes, `[n, 2]`, made ready."""
    shapes = {(w, h): content(w, h) for w, h in np.unique(sizes, axis=0).tolist()}
    extent = torch.tensor([shapes[w, h] for w, h in sizes.tolist()], dtype=torch.float32).reshape(-1, 2) / SIDE
    luma = torch.from_numpy(thumbnails)
    levels: tuple[list[Tensor], ...] = ([], [], [])
    for start in range(0, len(luma), AT_ONCE):
        x = luma[start : start + AT_ONCE].float()
        mask = in_content(grid(SIDE), extent[start : start + AT_ONCE]).float()
        for level, side in zip(levels, LEVELS, strict=True):
            level.append((detail(*reduced(x, mask, side)) / QUANTUM).round().clamp(-127, 127).to(torch.int8))
    empty = [torch.zeros(0, side, side, dtype=torch.int8) for side in LEVELS]
    return Gallery(luma, extent, tuple(torch.cat([e, *level]) for e, level in zip(empty, levels, strict=True)))


def detail(x: Tensor, mask: Tensor) -> Tensor:
    """What is compared of pictures `x` `[n, s, s]` (grey levels 0 .. 255) where `mask` is 1: a band of frequencies (difference
    of Gaussians, 0.6 and 2.5 pixels) over its local contrast (3 pixels). 0 outside the mask.

    The contrast has a floor, half of the whole picture's and two grey levels: walls stay calm, and noise is not enlarged.
    """
    band = (_blurred(x, mask, 0.6) - _blurred(x, mask, 2.5)) * mask
    energy = band.square()
    whole = energy.sum((1, 2), keepdim=True) / mask.sum((1, 2), keepdim=True).clamp(min=1)
    return band / (_blurred(energy, mask, 3.0) + 0.5 * whole + 4).sqrt()


def _blurred(x: Tensor, mask: Tensor, sigma: float) -> Tensor:
    """Gaussian average over the pixels inside the mask."""
    at = torch.arange(x.shape[-1], dtype=torch.float32)
    weights = torch.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
    return (weights @ (x * mask) @ weights) / (weights @ mask @ weights).clamp(min=1e-6)


def reduced(x: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pictures and masks averaged down to `side` pixels; a pixel is inside if at least half of it is."""
    factor = x.shape[-1] // side
    share = avg_pool2d(mask[:, None], factor)[:, 0]
    return avg_pool2d((x * mask)[:, None], factor)[:, 0] / share.clamp(min=1e-6), (share >= 0.5).float()


def grid(side: int) -> tuple[Tensor, Tensor]:
    """x and y of the pixels' centres, `[1, s, s]`, -1 .. 1."""
    at = (torch.arange(side, dtype=torch.float32) + 0.5) * (2 / side) - 1
    return at.expand(1, side, side), at[:, None].expand(1, side, side)


def in_content(points: tuple[Tensor, Tensor], extent: Tensor) -> Tensor:
    """Which points `[n, s, s]` lie in the content of pictures of this extent `[n, 2]`."""
    return (points[0].abs() < extent[:, :1, None]) & (points[1].abs() < extent[:, 1:, None])


def transformed(points: tuple[Tensor, Tensor], transform: Tensor) -> tuple[Tensor, Tensor]:
    """The points after transforms `[n, 4]`: real and imaginary part of the factor, x and y of the shift."""
    x, y = points
    a, b, dx, dy = (column[:, None, None] for column in transform.unbind(1))
    return a * x - b * y + dx, b * x + a * y + dy


def sampled(pictures: Tensor, points: tuple[Tensor, Tensor]) -> Tensor:
    """Pictures `[n, s, s]` at points, bilinear; 0 outside the square."""
    grid = torch.stack(points, dim=-1)
    return grid_sample(pictures[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def descriptors(luma: Tensor, extent: Tensor, view: Tensor | None = None, mirrored: bool = False) -> Tensor:
    """Details of pictures at the coarsest level as vectors of length 1, `[n, 144]`; of a view, as a reference would see it."""
    middle, side = grid(2 * LEVELS[0]), LEVELS[0]
    square = avg_pool2d(luma.float()[:, None], SIDE // (2 * side))[:, 0]
    points: tuple[Tensor, Tensor] = middle
    if mirrored:
        square = square.flip(-1)
    if view is not None:
        extent = extent - 1 / (2 * side)  # where the sampling mixes in what lies outside
        points = transformed(middle, inverse(view[None]))
        square = sampled(square, (points[0].expand_as(square), points[1].expand_as(square)))
    mask = in_content(points, extent).float()
    vectors = detail(*reduced(square, mask, side)).flatten(1)
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return unit


def inverse(transform: Tensor) -> Tensor:
    """The inverse transforms of `[n, 4]`."""
    a, b, dx, dy = transform.unbind(1)
    size = a.square() + b.square()
    re, im = a / size, -b / size
    return torch.stack([re, im, -(re * dx - im * dy), -(im * dx + re * dy)], dim=1)
