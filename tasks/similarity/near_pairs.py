"""All pairs of pictures below a distance: near-duplicates of one another, or of pictures that are looked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.similarity.alignment import align
from tasks.similarity.candidates import CANDIDATES, candidates
from tasks.similarity.gallery import LEVELS, Gallery

# A pair is given up as soon as it cannot become near. Measured on planted copies (cut by 10 %, turned, mirrored, encoded): the
# best view has a cosine of 0.6 at least, and the correlation at 12 pixels is at most 0.1 below that at 48. Coarse pictures
# correlate more than fine ones.
_LEAST_COSINE = 0.45
_SLACK = (0.1, 0.0, 0.0)  # of the correlation at 12, 24, 48 pixels


Search = Callable[[Gallery, Gallery, int, tuple[Tensor, Tensor] | None, float], tuple[Tensor, Tensor]]


class NearPairs(NamedTuple):
    """Pairs `[p]` of a query and a reference."""

    query: Tensor
    reference: Tensor
    mirrored: Tensor  # bool: the query is mirrored first
    distance: Tensor  # 1 - correlation
    transform: Tensor  # [p, 4]: from the query's coordinates to the reference's, as in `alignment`

    def at(self, places: Tensor) -> NearPairs:
        """Some of the pairs."""
        return NearPairs(*(column[places] for column in self))


def near_pairs(
    queries: Gallery,
    references: Gallery,
    limit: float,
    groups: tuple[Tensor, Tensor] | None = None,
    search: Search = candidates,
) -> NearPairs:
    """The pairs of a query and one of its candidates whose distance after alignment is at most `limit`.

    If `references` is `queries`, no picture is paired with itself, and each pair is given once, whichever of the two is the
    query. `groups` as for `candidates.candidates`. `search`: what finds the candidates.
    """
    same = references is queries
    if same and groups is None:
        own = torch.arange(len(queries))
        groups = own, own
    index, start = search(queries, references, CANDIDATES, groups, _LEAST_COSINE)
    query, place = (index >= 0).nonzero(as_tuple=True)
    reference, starts = index[query, place], start[query, place]
    if same:
        low, high = torch.minimum(query, reference), torch.maximum(query, reference)
        once = _first(low * len(queries) + high)
        query, reference, starts = query[once], reference[once], starts[once]
    query, reference = query.repeat_interleave(2), reference.repeat_interleave(2)
    mirrored = torch.arange(len(query)).remainder(2).bool()
    pairs = NearPairs(query, reference, mirrored, torch.zeros(len(query)), starts.flatten(0, 1))
    for level in range(len(LEVELS)):
        correlation, transform = align(
            queries,
            references,
            pairs.query,
            pairs.reference,
            pairs.mirrored,
            pairs.transform,
            levels=range(level, level + 1),
        )
        pairs = pairs._replace(distance=1 - correlation, transform=transform)
        pairs = pairs.at(pairs.distance <= limit + _SLACK[level])
    pairs = pairs.at(pairs.distance.argsort(stable=True))  # mirrored or not, whichever is nearer
    return pairs.at(_first(pairs.query * len(references) + pairs.reference))


def _first(codes: Tensor) -> Tensor:
    """Places of the first of each code, in the order of the codes."""
    ordered, places = codes.sort(stable=True)
    first = torch.ones(len(codes), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return places[first]
