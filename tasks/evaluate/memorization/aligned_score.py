"""Copy scores of pictures that were laid over each other first (see tasks/similarity/alignment.py).

The distance is 1 - correlation after alignment, so that a copy may be mirrored, rotated, cropped, enlarged, recoloured
or marked.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import grid_sample

from tasks.common import machine
from tasks.common.thumbnail import SIDE
from tasks.evaluate.memorization.copy_score import ITEMS, Scores, joined, needed_groups, ratio
from tasks.similarity.alignment import FINE, nearest
from tasks.similarity.candidates import make_ready
from tasks.similarity.gallery import Gallery, prepare

CLOSEST = 1e-4  # smaller distances are rounding
NO_GROUP = -1


class AlignedScorer:
    """Copy scores against `train`, pictures `[m, h, w, 3 or 4]` (see `as_gallery`), whose groups are `groups` `[m]`."""

    def __init__(self, train: np.ndarray, groups: np.ndarray) -> None:
        self._base, self._groups = as_gallery(train), torch.from_numpy(groups.astype(np.int64))
        make_ready(self._base)

    def score(self, items: np.ndarray, own: np.ndarray | None = None) -> Scores:
        """See copy_score.Scorer. Raises TooFewItems if the training set does not hold two groups besides an item's own."""
        needed_groups(self._groups.numpy(), own)
        own = np.full(len(items), NO_GROUP) if own is None else own.astype(np.int64)
        blocks = [slice(start, start + ITEMS) for start in range(0, len(items), ITEMS)]
        before = torch.get_num_threads()
        # The arrays are too small for torch's own threads.
        with ThreadPoolExecutor(machine.cores(), initializer=partial(torch.set_num_threads, 1)) as pool:
            scores = list(pool.map(self._block, [items[block] for block in blocks], [own[block] for block in blocks]))
        torch.set_num_threads(before)
        return joined(scores)

    def _block(self, items: np.ndarray, own: np.ndarray) -> Scores:
        queries, left_out = as_gallery(items), torch.from_numpy(own)
        found = nearest(queries, self._base, FINE, (left_out, self._groups))
        at = torch.arange(len(items))
        group = self._groups[found.index.clamp(min=0)]
        other = (found.index >= 0) & (group != group[:, :1])
        second = other.int().argmax(dim=1)
        d2, second_index = found.distance[at, second], found.index[at, second]
        missing = (~other.any(dim=1)).nonzero()[:, 0]
        if len(missing):  # the nearest are all of one group: search again without it
            excluded = torch.stack([left_out[missing], group[missing, 0]], dim=1)
            again = nearest(_rows(queries, missing), self._base, 1, (excluded, self._groups))
            d2[missing], second_index[missing] = again.distance[:, 0], again.index[:, 0]
        first = found.distance[:, 0].double().numpy().clip(CLOSEST)
        # The candidates for the second may be others than those for the first, and one of them nearer.
        farther = np.maximum(first, d2.double().numpy())
        indices = (found.index[:, 0], second_index, found.alignments.mirrored[:, 0].long())
        return Scores(ratio(first, farther), first, farther, *(index.numpy() for index in indices))


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
