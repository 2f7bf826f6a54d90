"""Copy scores of pictures that were laid over each other first (see tasks/similarity/alignment.py).

The distance is 1 - correlation after alignment, so that a copy may be mirrored, rotated, cropped, enlarged, recoloured
or marked.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from tasks.evaluate.memorization.copy_score import Scores, needed_groups, ratio
from tasks.similarity.alignment import CANDIDATES, FINE, Gallery, nearest, prepare
from tasks.similarity.thumbnail import SIDE

CLOSEST = 1e-4  # smaller distances are rounding
MIRRORED = 1  # index of the mirrored invariance


class AlignedScorer:
    """Copy scores against `train`, pictures `[m, h, w, 3]` or `[m, h, w, 4]` (see `as_gallery`), whose groups are
    `groups` `[m]`."""

    def __init__(self, train: np.ndarray, groups: np.ndarray) -> None:
        self._base, self._groups = as_gallery(train), torch.from_numpy(groups.astype(np.int64))

    def score(self, items: np.ndarray, own: np.ndarray | None = None) -> Scores:
        """See copy_score.Scorer. Raises TooFewItems if the training set does not hold two groups besides an item's own."""
        needed_groups(self._groups.numpy(), own)
        own_groups = None if own is None else torch.from_numpy(own.astype(np.int64))
        columns = [np.zeros(len(items), kind) for kind in (float, float, np.int64, np.int64, np.int64)]
        queries = as_gallery(items)
        missing = torch.arange(len(items))
        k, proposed = FINE, CANDIDATES
        while len(missing):
            excluded = None if own_groups is None else (own_groups[missing], self._groups)
            found = nearest(_rows(queries, missing), self._base, k, excluded, proposed)
            there = found.index >= 0
            group = self._groups[found.index.clamp(min=0)]
            other = there & (group != group[:, :1])
            second = other.int().argmax(dim=1)
            done = other.any(dim=1)
            at = torch.arange(len(missing))
            for column, value in zip(
                columns,
                (
                    found.distance[:, 0], found.distance[at, second], found.index[:, 0], found.index[at, second],
                    found.alignments.mirrored[:, 0],
                ),
                strict=True,
            ):  # fmt: skip
                column[missing[done].numpy()] = value[done].numpy()
            missing = missing[~done]
            # All are of one group: look at more of them, for these items alone.
            k, proposed = min(4 * k, len(self._base)), min(4 * proposed, len(self._base))
        d1, d2 = (column.clip(CLOSEST) for column in columns[:2])
        d2 = np.maximum(d1, d2)
        return Scores(ratio(d1, d2), d1, d2, *columns[2:])


def _rows(gallery: Gallery, rows: torch.Tensor) -> Gallery:
    return Gallery(gallery.luma[rows], gallery.extent[rows], tuple(level[rows] for level in gallery.levels))


def as_gallery(items: np.ndarray) -> Gallery:
    """Pictures, uint8 or float in [0, 1], made ready for alignment.

    `[n, h, w, 3]`, or `[n, h, w, 4]` for pictures in the middle of a square, whose fourth channel is 0 outside of them.
    """
    small = np.zeros((len(items), SIDE, SIDE), np.uint8)
    sizes = np.full((len(items), 2), SIDE, np.int64)
    for i, item in enumerate(items):
        picture = item if item.dtype == np.uint8 else (np.clip(item, 0, 1) * 255).round().astype(np.uint8)
        if picture.shape[:2] != (SIDE, SIDE):
            picture = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), _filter(picture)))
        small[i] = np.asarray(Image.fromarray(np.ascontiguousarray(picture[..., :3])).convert("L"))
        if picture.shape[-1] == 4:
            inside = picture[..., 3] >= 128
            small[i][~inside] = 0
            sizes[i] = inside.any(axis=0).sum(), inside.any(axis=1).sum()
    return prepare(small, sizes)


def _filter(picture: np.ndarray) -> Image.Resampling:
    return Image.Resampling.BOX if picture.shape[0] > SIDE else Image.Resampling.BICUBIC


def laid_over(item: np.ndarray, original: np.ndarray) -> np.ndarray:
    """One picture as it is seen by the transform that lays it over its original, float32 in [0, 1]; grey where there is
    nothing."""
    found = nearest(as_gallery(item[None]), as_gallery(original[None]), 1).alignments
    picture = item.astype(np.float32) / (255 if item.dtype == np.uint8 else 1)
    if bool(found.mirrored[0, 0]):
        picture = picture[:, ::-1]
    height, width = original.shape[:2]
    y, x = np.meshgrid(_centres(height), _centres(width), indexing="ij")
    angle = np.deg2rad(float(found.angle[0, 0]))
    factor = float(found.scale[0, 0]) * np.exp(1j * angle)
    shift = found.shift[0, 0].double().numpy()
    # The alignment gives the place of a point of the item in the original; here its inverse is needed.
    points = (x + 1j * y - (shift[0] + 1j * shift[1])) / factor
    grid = torch.from_numpy(np.stack([points.real, points.imag], axis=-1).astype(np.float32))[None]
    channels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
    seen = grid_sample(channels - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0] + 0.5
    return seen.permute(1, 2, 0).numpy()


def _centres(side: int) -> np.ndarray:
    return (np.arange(side) + 0.5) * (2 / side) - 1
