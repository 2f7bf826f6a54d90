"""Alignment: the similarity transform that lays one picture over another, and how well the two then agree.

A picture that was cropped, zoomed, rotated, mirrored, re-encoded, recoloured or marked is near its original only after the
transform was undone. `nearest` does this for sets of pictures in three steps:

1. **Candidates.** Every query is compared with the references at 12 x 12 pixels (`candidates`).
2. **Alignment.** Scale, angle and shift are fitted by Gauss-Newton steps on the zero-mean normalised cross-correlation of the
   overlap, from coarse to fine (12, 24, 48 pixels). The steps are inverse compositional (Baker & Matthews 2004), so that
   gradients and Hessian are computed once a level; the criterion is that of Evangelidis & Psarakis 2008 (ECC).
3. **Distance.** 1 - correlation at 48 pixels: 0 for the same picture, up to 1 for pictures that have nothing in common.

What is correlated is not brightness but detail: a band of spatial frequencies, divided by its local contrast
(`gallery.detail`). Otherwise two dark figures in front of white walls would correlate by 0.8. It makes the result independent
of brightness, contrast, and, since only luminance is used, of colours.

Everything is deterministic, and a pair's result does not depend on the pairs beside it except for rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tasks.common.thumbnail import SIDE
from tasks.similarity.candidates import CANDIDATES, candidates
from tasks.similarity.gallery import AT_ONCE, LEVELS, QUANTUM, Gallery, grid, in_content, inverse, sampled, transformed

STEPS = (6, 4, 3)  # Gauss-Newton steps at each of LEVELS
FINE = 4  # candidates that are aligned at 48 pixels

_LEAST_OVERLAP = 0.6  # of the smaller picture; below it a correlation says nothing
_SCALES, _SHIFTS = (0.65, 1.5), 0.6  # the transforms that are tried: scale, and shift in halves of the square


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
    for first in range(0, len(rows), AT_ONCE):
        pairs = slice(first, first + AT_ONCE)
        i, j, flipped = rows[pairs], columns[pairs], mirrored[pairs, None, None]
        extents = queries.extent[i], references.extent[j]
        for level in levels:
            template = queries.levels[level][i].float() * QUANTUM
            template = torch.where(flipped, template.flip(-1), template)
            picture = references.levels[level][j].float() * QUANTUM
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
    x, y = middle = grid(SIDE)
    for first in range(0, len(rows), AT_ONCE):
        pairs = slice(first, first + AT_ONCE)
        i, j, flipped = rows[pairs], columns[pairs], mirrored[pairs, None, None]
        template, picture = queries.levels[-1][i].float(), references.levels[-1][j].float()
        template = torch.where(flipped, template.flip(-1), template)
        across = torch.where(flipped, -x, x)
        inside = (across >= low[pairs, 0]) & (across <= high[pairs, 0]) & (y >= low[pairs, 1]) & (y <= high[pairs, 1])
        points = transformed(middle, transform[pairs])
        overlap = inside & in_content(middle, queries.extent[i]) & in_content(points, references.extent[j])
        mask = overlap.flatten(1).float()
        area = mask.sum(1, keepdim=True)
        t, w = (_centred(z.flatten(1), mask, area) for z in (template, sampled(picture, points)))
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
    middle = x, y = grid(side)
    inner = in_content(middle, extents[0] - 1 / side)  # on its edge the content has no derivative
    along_x, along_y = torch.zeros_like(template), torch.zeros_like(template)
    along_x[:, :, 1:-1] = (template[:, :, 2:] - template[:, :, :-2]) * (side / 4)
    along_y[:, 1:-1] = (template[:, 2:] - template[:, :-2]) * (side / 4)
    along_x, along_y = along_x * inner, along_y * inner
    turned = along_y * x - along_x * y
    derivatives = torch.stack([along_x * x + along_y * y, turned, along_x, along_y], dim=1).flatten(2)
    hessian = derivatives @ derivatives.mT
    damping = 0.01 * hessian.diagonal(dim1=1, dim2=2) + 1e-3
    inverse = torch.linalg.inv(hessian + torch.diag_embed(damping))
    own = in_content(middle, extents[0])
    flat = template.flatten(1)
    best, best_transform = torch.full((len(template),), -1.0), transform
    smaller = torch.minimum(extents[0].prod(1), extents[1].prod(1) / transform[:, :2].square().sum(1)) * side**2
    for step in range(steps + 1):
        points = transformed(middle, transform)
        overlap = (own & in_content(points, extents[1])).flatten(1).float()
        area = overlap.sum(1, keepdim=True)
        warped = sampled(picture, points).flatten(1)
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
