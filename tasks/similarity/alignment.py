"""Alignment: the similarity transform that lays one picture over another, and how well the two then agree.

A picture that was cropped, zoomed, rotated, mirrored, re-encoded, recoloured or marked is near its original only after the
transform was undone. `nearest` does this for sets of pictures in three steps:

1. **Candidates.** Every query is compared with every reference at 12 x 12 pixels, as it is and mirrored, a little smaller and
   larger and shifted to each corner, since cuts do that to a picture. The search is exact.
2. **Alignment.** Scale, angle and shift are fitted by Gauss-Newton steps on the zero-mean normalised cross-correlation of the
   overlap, from coarse to fine (12, 24, 48 pixels). The steps are inverse compositional (Baker & Matthews 2004), so that
   gradients and Hessian are computed once a level; the criterion is that of Evangelidis & Psarakis 2008 (ECC).
3. **Distance.** 1 - correlation at 48 pixels: 0 for the same picture, up to 1 for pictures that have nothing in common.

What is correlated is not brightness but detail: a band of spatial frequencies, divided by its local contrast
(`detail`). Otherwise two dark figures in front of white walls would correlate by 0.8. It makes the result independent of
brightness, contrast, and, since only luminance is used, of colours.

Everything is deterministic, and a pair's result does not depend on the pairs beside it except for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from tasks.common.thumbnail import SIDE, content, thumbnail

LEVELS = (12, 24, 48)  # pixels along the side, coarse to fine
STEPS = (6, 4, 3)  # Gauss-Newton steps at each
CANDIDATES = 12  # of a query
FINE = 4  # of them are aligned at 48 pixels
# The views of a query in the search: zoom, and shift in halves of the square. Measured on 1,200 mannequins, cut by 10 % in each
# direction: the original is the first candidate in 98 %, with the first view alone in 73 %. Turned views do not help.
_VIEWS = (
    (1.0, 0.0, 0.0),
    (0.92, 0.0, 0.0),
    (1.09, 0.0, 0.0),
    *((0.92, x, y) for x in (-0.08, 0.08) for y in (-0.08, 0.08)),
)

_QUANTUM = 1 / 32  # details are stored as int8 in these steps
_LEAST_OVERLAP = 0.6  # of the smaller picture; below it a correlation says nothing
_SCALES, _SHIFTS = (0.65, 1.5), 0.6  # the transforms that are tried: scale, and shift in halves of the square
_PAIRS = 128  # aligned at once: their arrays fit a core's cache
_COSINES = 1 << 22  # computed at once in the search: they fit the processor's cache


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


class Alignments(NamedTuple):
    """Aligned pairs `[...]`. A point z of the query, as a complex number (x + iy, from the middle of the picture, in halves
    of the longer side, mirrored first if `mirrored`), lies at scale e^(i angle) z + shift in the reference."""

    distance: Tensor  # 1 - correlation, float32, 0 .. 2
    mirrored: Tensor  # bool
    scale: Tensor
    angle: Tensor  # degrees; positive turns x towards y, clockwise as pictures are shown
    shift: Tensor  # [..., 2]: x, y


class Nearest(NamedTuple):
    """The references nearest to each query `[q, k]`, nearest first. `index` is -1 where there are fewer than k."""

    index: Tensor  # type: ignore[assignment]  # int64; hides tuple.index, which nobody calls
    alignments: Alignments

    @property
    def distance(self) -> Tensor:
        return self.alignments.distance


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
    for start in range(0, len(luma), _PAIRS):
        x = luma[start : start + _PAIRS].float()
        mask = _inside(_grid(SIDE), extent[start : start + _PAIRS]).float()
        for level, side in zip(levels, LEVELS, strict=True):
            level.append((detail(*_reduced(x, mask, side)) / _QUANTUM).round().clamp(-127, 127).to(torch.int8))
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


def _reduced(x: Tensor, mask: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pictures and masks averaged down to `side` pixels; a pixel is inside if at least half of it is."""
    factor = x.shape[-1] // side
    share = avg_pool2d(mask[:, None], factor)[:, 0]
    return avg_pool2d((x * mask)[:, None], factor)[:, 0] / share.clamp(min=1e-6), (share >= 0.5).float()


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """x and y of the pixels' centres, `[1, s, s]`, -1 .. 1."""
    at = (torch.arange(side, dtype=torch.float32) + 0.5) * (2 / side) - 1
    return at.expand(1, side, side), at[:, None].expand(1, side, side)


def _inside(points: tuple[Tensor, Tensor], extent: Tensor) -> Tensor:
    """Which points `[n, s, s]` lie in the content of pictures of this extent `[n, 2]`."""
    return (points[0].abs() < extent[:, :1, None]) & (points[1].abs() < extent[:, 1:, None])


def _moved(points: tuple[Tensor, Tensor], transform: Tensor) -> tuple[Tensor, Tensor]:
    """The points after transforms `[n, 4]`: real and imaginary part of the factor, x and y of the shift."""
    x, y = points
    a, b, dx, dy = (column[:, None, None] for column in transform.unbind(1))
    return a * x - b * y + dx, b * x + a * y + dy


def _sampled(pictures: Tensor, points: tuple[Tensor, Tensor]) -> Tensor:
    """Pictures `[n, s, s]` at points, bilinear; 0 outside the square."""
    grid = torch.stack(points, dim=-1)
    return grid_sample(pictures[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]


def _views() -> list[Tensor]:
    """The views of a query in the search: the transforms `[4]` to the reference that they assume; the first is the identity."""
    return [torch.tensor([zoom, 0.0, x, y]) for zoom, x, y in _VIEWS]


def _descriptors(luma: Tensor, extent: Tensor, view: Tensor | None = None, mirrored: bool = False) -> Tensor:
    """Details of pictures at the coarsest level as vectors of length 1, `[n, 144]`; of a view, as a reference would see it."""
    middle, side = _grid(2 * LEVELS[0]), LEVELS[0]
    square = avg_pool2d(luma.float()[:, None], SIDE // (2 * side))[:, 0]
    points: tuple[Tensor, Tensor] = middle
    if mirrored:
        square = square.flip(-1)
    if view is not None:
        extent = extent - 1 / (2 * side)  # where the sampling mixes in what lies outside
        points = _moved(middle, inverse(view[None]))
        square = _sampled(square, (points[0].expand_as(square), points[1].expand_as(square)))
    mask = _inside(points, extent).float()
    vectors = detail(*_reduced(square, mask, side)).flatten(1)
    unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return unit


def inverse(transform: Tensor) -> Tensor:
    """The inverse transforms of `[n, 4]`."""
    a, b, dx, dy = transform.unbind(1)
    size = a.square() + b.square()
    re, im = a / size, -b / size
    return torch.stack([re, im, -(re * dx - im * dy), -(im * dx + re * dy)], dim=1)


def candidates(
    queries: Gallery,
    references: Gallery,
    k: int = CANDIDATES,
    groups: tuple[Tensor, Tensor] | None = None,
    least: float = -1.0,
) -> tuple[Tensor, Tensor]:
    """The k references most alike each query at 12 pixels: `index` int64 `[q, k]`, -1 where there are fewer.

    Also `start` float32 `[q, k, 2, 4]`: the best view's transform with the query as it is and mirrored. `groups`: numbers of
    groups that are no candidates of a query, int64 `[q]` or `[q, m]`, and the references' groups, `[n]`. `least`: cosine of
    the best view below which a reference is no candidate.
    """
    transforms = torch.stack(_views())
    n, most = len(references), min(k, len(references))
    rows = torch.cat([torch.zeros(0, LEVELS[0] ** 2), *(_descriptors(*part) for part in _parts(references, 1024))])
    index = torch.full((len(queries), k), -1)
    start = transforms[0].repeat(len(queries), k, 2, 1)
    size = together(n)
    for number, part in enumerate(_parts(queries, size) if n else ()):
        block = slice(number * size, (number + 1) * size)
        views = torch.stack(
            [torch.stack([_descriptors(*part, one, mirrored) for one in transforms]) for mirrored in (False, True)]
        )
        best = torch.stack(
            [(of_state.flatten(0, 1) @ rows.T).unflatten(0, of_state.shape[:2]).amax(0) for of_state in views]
        )
        either = best.amax(0)
        if groups is not None:
            own = groups[0][block].reshape(len(either), -1)
            for column in own.unbind(1):
                either.masked_fill_(column[:, None] == groups[1], -2)
        top = either.topk(most)
        index[block, :most] = top.indices.masked_fill(top.values < least, -1)
        best_view = torch.einsum("mvbd,bkd->bkmv", views, rows[top.indices]).argmax(-1)
        start[block, :most] = transforms[best_view]
    return index, start


def together(references: int) -> int:
    """How many queries `candidates` compares at a time with so many references. Their results are rounded together."""
    return max(1, min(64, _COSINES // (len(_VIEWS) * max(references, 1))))


def _parts(gallery: Gallery, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(gallery.luma.split(size), gallery.extent.split(size), strict=True)) if len(gallery) else []


def align(
    queries: Gallery,
    references: Gallery,
    rows: Tensor,
    columns: Tensor,
    mirrored: Tensor,
    start: Tensor | None = None,
    levels: range = range(len(LEVELS)),
) -> tuple[Tensor, Tensor]:
    """Correlation `[p]` of pairs (queries[rows], references[columns]) after alignment, and the transforms `[p, 4]`.

    `mirrored` bool `[p]`: of which pairs the query is mirrored first. `start`: transforms to begin with. `levels`: which of
    LEVELS are used; the correlation is that of the last one.
    """
    if start is None:
        start = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(len(rows), 4)
    correlation, transform = torch.empty(len(rows)), start.clone()
    for first in range(0, len(rows), _PAIRS):
        pairs = slice(first, first + _PAIRS)
        i, j, flipped = rows[pairs], columns[pairs], mirrored[pairs, None, None]
        extents = queries.extent[i], references.extent[j]
        for level in levels:
            template = queries.levels[level][i].float() * _QUANTUM
            template = torch.where(flipped, template.flip(-1), template)
            picture = references.levels[level][j].float() * _QUANTUM
            correlation[pairs], transform[pairs] = _fit(template, picture, extents, transform[pairs], STEPS[level])
    return correlation, transform


def correlation_within(
    queries: Gallery,
    references: Gallery,
    rows: Tensor,
    columns: Tensor,
    mirrored: Tensor,
    transform: Tensor,
    regions: Tensor,
) -> Tensor:
    """Correlation `[p]` of aligned pairs at 48 pixels, inside a region of each query: a person, say, without the room.

    `regions` float32 `[p, 4]`: x0, y0, x1, y1 in the coordinates of the query (not mirrored). Each is enlarged to at least a
    quarter of the square's side, since a correlation over few pixels says little.
    """
    found = [torch.zeros(0)]
    low, high = regions[:, :2], regions[:, 2:]
    missing = ((0.5 - (high - low)) / 2).clamp(min=0)
    low, high = (low - missing)[:, :, None, None], (high + missing)[:, :, None, None]
    x, y = middle = _grid(SIDE)
    for first in range(0, len(rows), _PAIRS):
        pairs = slice(first, first + _PAIRS)
        i, j, flipped = rows[pairs], columns[pairs], mirrored[pairs, None, None]
        template, picture = queries.levels[-1][i].float(), references.levels[-1][j].float()
        template = torch.where(flipped, template.flip(-1), template)
        across = torch.where(flipped, -x, x)
        inside = (across >= low[pairs, 0]) & (across <= high[pairs, 0]) & (y >= low[pairs, 1]) & (y <= high[pairs, 1])
        points = _moved(middle, transform[pairs])
        overlap = inside & _inside(middle, queries.extent[i]) & _inside(points, references.extent[j])
        mask = overlap.flatten(1).float()
        area = mask.sum(1, keepdim=True)
        t, w = (_centred(z.flatten(1), mask, area) for z in (template, _sampled(picture, points)))
        found.append((t * w).sum(1) / (t.norm(dim=1) * w.norm(dim=1)).clamp(min=1e-6))
    return torch.cat(found)


def _fit(
    template: Tensor, picture: Tensor, extents: tuple[Tensor, Tensor], transform: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """Gauss-Newton steps for pairs `[p, s, s]`; the best correlation seen `[p]`, and its transform `[p, 4]`.

    With T the template and W the picture under the current transform, both of mean 0 and length 1 over the overlap, and S the
    derivatives of T by the four parameters of a similarity transform of its coordinates, a step is (S' S)^-1 S' (W / rho - T);
    its inverse is applied before the current transform. Dividing by the correlation rho makes up for what only one of the two
    pictures shows (the factor lambda of ECC).
    """
    side = template.shape[-1]
    middle = x, y = _grid(side)
    inner = _inside(middle, extents[0] - 1 / side)  # on its edge the content has no derivative
    along_x, along_y = torch.zeros_like(template), torch.zeros_like(template)
    along_x[:, :, 1:-1] = (template[:, :, 2:] - template[:, :, :-2]) * (side / 4)
    along_y[:, 1:-1] = (template[:, 2:] - template[:, :-2]) * (side / 4)
    along_x, along_y = along_x * inner, along_y * inner
    turned = along_y * x - along_x * y
    derivatives = torch.stack([along_x * x + along_y * y, turned, along_x, along_y], dim=1).flatten(2)
    hessian = derivatives @ derivatives.mT
    damping = 0.01 * hessian.diagonal(dim1=1, dim2=2) + 1e-3
    inverse = torch.linalg.inv(hessian + torch.diag_embed(damping))
    own = _inside(middle, extents[0])
    flat = template.flatten(1)
    best, best_transform = torch.full((len(template),), -1.0), transform
    smaller = torch.minimum(extents[0].prod(1), extents[1].prod(1) / transform[:, :2].square().sum(1)) * side**2
    for step in range(steps + 1):
        points = _moved(middle, transform)
        overlap = (own & _inside(points, extents[1])).flatten(1).float()
        area = overlap.sum(1, keepdim=True)
        warped = _sampled(picture, points).flatten(1)
        t, w = (_centred(z, overlap, area) for z in (flat, warped))
        lengths = t.norm(dim=1), w.norm(dim=1)
        correlation = (t * w).sum(1) / (lengths[0] * lengths[1]).clamp(min=1e-6)
        correlation = correlation.masked_fill(area[:, 0] < _LEAST_OVERLAP * smaller, -1)
        better = correlation > best
        best = torch.where(better, correlation, best)
        best_transform = torch.where(better[:, None], transform, best_transform)
        if step < steps:
            gain = lengths[0] / (lengths[1] * correlation.clamp(min=0.4)).clamp(min=1e-6)
            error = w * gain[:, None] - t
            moved = (inverse @ (derivatives @ error[:, :, None]))[:, :, 0].clamp(-0.3, 0.3)
            transform = _limited(_followed(moved, transform))
    return best, best_transform


def _centred(x: Tensor, mask: Tensor, area: Tensor) -> Tensor:
    return (x - (x * mask).sum(1, keepdim=True) / area.clamp(min=1)) * mask


def _followed(step: Tensor, transform: Tensor) -> Tensor:
    """The inverse of the step (1 + a, b, dx, dy), then the transform."""
    a, b, dx, dy = inverse(step + torch.tensor([1.0, 0.0, 0.0, 0.0])).unbind(1)
    re, im, x, y = transform.unbind(1)
    return torch.stack([re * a - im * b, re * b + im * a, re * dx - im * dy + x, im * dx + re * dy + y], dim=1)


def _limited(transform: Tensor) -> Tensor:
    """The nearest transform that is tried."""
    scale = transform[:, :2].norm(dim=1, keepdim=True).clamp(min=1e-6)
    return torch.cat(
        [transform[:, :2] * (scale.clamp(*_SCALES) / scale), transform[:, 2:].clamp(-_SHIFTS, _SHIFTS)], dim=1
    )


def nearest(
    queries: Gallery,
    references: Gallery,
    k: int = 2,
    groups: tuple[Tensor, Tensor] | None = None,
    proposed: int = CANDIDATES,
) -> Nearest:
    """The k references nearest to each query after alignment; `groups` as for `candidates`.

    The `proposed` candidates are aligned at 12 pixels as they are and mirrored, the best eight of these pairs (or 2 k) at 24
    pixels, and the best four references (or k) at 48.
    """
    proposal, starts = candidates(queries, references, proposed, groups)
    index = proposal.repeat_interleave(2, dim=1)
    mirrored = torch.arange(index.shape[1]).remainder(2).bool().expand_as(index)
    transform = starts.flatten(1, 2)
    number = torch.arange(len(queries))[:, None].expand_as(index)
    correlation = torch.full(index.shape, -1.0)
    widths = min(2 * proposed, max(2 * FINE, 2 * k)), min(proposed, max(FINE, k)), min(proposed, k)
    for level, width in enumerate(widths):
        there = index >= 0
        pairs = number[there], index[there], mirrored[there]
        found, moved = align(queries, references, *pairs, transform[there], levels=range(level, level + 1))
        correlation = torch.full(index.shape, -1.0).masked_scatter(there, found)
        transform = transform.masked_scatter(there[..., None], moved)
        order = correlation.argsort(dim=1, descending=True, stable=True)
        index, mirrored, correlation = (z.gather(1, order) for z in (index, mirrored, correlation))
        transform = transform.gather(1, order[..., None].expand_as(transform))
        if level == 1:  # of a reference and its mirror image the better one goes on
            again = (index[:, :, None] == index[:, None, :]).tril(-1).any(2)
            order = again.int().argsort(dim=1, stable=True)
            index = index.masked_fill(again, -1).gather(1, order)
            mirrored, correlation = mirrored.gather(1, order), correlation.gather(1, order)
            transform = transform.gather(1, order[..., None].expand_as(transform))
        index, mirrored, transform, number = (z[:, :width] for z in (index, mirrored, transform, number))
        correlation = correlation[:, :width]
    a, b = transform[..., 0], transform[..., 1]
    scale, angle = torch.hypot(a, b), torch.atan2(b, a).rad2deg()
    return Nearest(index, Alignments(1 - correlation, mirrored, scale, angle, transform[..., 2:]))
