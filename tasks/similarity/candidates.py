"""Candidates for alignment: the references that look most like a query at 12 x 12 pixels.

A query is compared as it is and mirrored, a little smaller and larger and shifted to each corner, since cuts do that to a
picture. Up to EXACT references every query is compared with every reference. Beyond, FAISS proposes references: those in the
lists of an inverted file that are nearest to each view of the query. What is proposed is compared in the same way.
"""

from __future__ import annotations

import faiss
import numpy as np
import torch
from torch import Tensor

from tasks.similarity.gallery import Gallery, descriptors

CANDIDATES = 12  # of a query
EXACT = 20_000  # references that are all compared
_PROBED = 32  # lists that are searched for each view of a query
# The views of a query in the search: zoom, and shift in halves of the square. Measured on 1,200 mannequins, cut by 10 % in each
# direction: the original is the first candidate in 98 %, with the first view alone in 73 %. Turned views do not help.
_VIEWS = (
    (1.0, 0.0, 0.0),
    (0.92, 0.0, 0.0),
    (1.09, 0.0, 0.0),
    *((0.92, x, y) for x in (-0.08, 0.08) for y in (-0.08, 0.08)),
)
_COSINES = 1 << 22  # computed at once in the search: they fit the processor's cache

Groups = tuple[Tensor, Tensor]


def candidates(
    queries: Gallery, references: Gallery, k: int = CANDIDATES, groups: Groups | None = None, least: float = -1.0
) -> tuple[Tensor, Tensor]:
    """The k references most alike each query at 12 pixels: `index` int64 `[q, k]`, -1 where there are fewer.

    Also `start` float32 `[q, k, 2, 4]`: the best view's transform with the query as it is and mirrored. `groups`: numbers of
    groups that are no candidates of a query, int64 `[q]` or `[q, m]`, and the references' groups, `[n]`. `least`: cosine of
    the best view below which a reference is no candidate.
    """
    transforms = torch.tensor([[zoom, 0.0, x, y] for zoom, x, y in _VIEWS])
    index = torch.full((len(queries), k), -1)
    start = transforms[0].repeat(len(queries), k, 2, 1)
    if not len(queries) or not len(references):
        return index, start
    rows, size = references.coarse, together(len(references))
    for number, part in enumerate(zip(queries.luma.split(size), queries.extent.split(size), strict=True)):
        block = slice(number * size, number * size + len(part[0]))
        # [2, views, block, 144]: as it is and mirrored
        views = torch.stack(
            [torch.stack([descriptors(*part, one, mirrored) for one in transforms]) for mirrored in (False, True)]
        )
        own = None if groups is None else groups[0][block].reshape(len(part[0]), -1)
        excluded = None if own is None or groups is None else (own, groups[1])
        if len(rows) <= EXACT:
            cosine, column = _all(views, rows, excluded)
        else:
            cosine, column = _proposed(views, references, k, excluded)
        top = cosine.topk(min(k, cosine.shape[1]))
        found = column.gather(1, top.indices)
        most = found.shape[1]
        index[block, :most] = found.masked_fill(top.values < least, -1)
        best_view = torch.einsum("mvbd,bkd->bkmv", views, rows[found]).argmax(-1)
        start[block, :most] = transforms[best_view]
    return index, start


def make_ready(references: Gallery) -> None:
    """Make what a search among these references needs, before several threads search at once."""
    if len(references.coarse) > EXACT:
        _ = references.inverted


def together(references: int) -> int:
    """How many queries `candidates` compares at a time with so many references. Their results are rounded together."""
    return max(1, min(64, _COSINES // (len(_VIEWS) * max(min(references, EXACT), 1))))


def _all(views: Tensor, rows: Tensor, excluded: Groups | None) -> tuple[Tensor, Tensor]:
    """The cosine `[b, n]` of each query's best view with every reference, -2 for excluded ones, and the references' numbers."""
    cosine = torch.stack(
        [(state.flatten(0, 1) @ rows.T).unflatten(0, state.shape[:2]).amax(0) for state in views]
    ).amax(0)
    if excluded is not None:
        for own in excluded[0].unbind(1):
            cosine.masked_fill_(own[:, None] == excluded[1], -2)
    return cosine, torch.arange(len(rows)).expand_as(cosine)


def _proposed(views: Tensor, references: Gallery, k: int, excluded: Groups | None) -> tuple[Tensor, Tensor]:
    """The same for the references that FAISS proposes, `[b, p]`; -2 where a query has fewer."""
    rows, proposals = references.coarse, []
    members = None if excluded is None else _members(*excluded)
    for number in range(views.shape[2]):
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = _PROBED
        if members is not None:
            left_out = torch.cat(members[number]).numpy()
            parameters.sel = faiss.IDSelectorNot(faiss.IDSelectorBatch(left_out))
        asked = views[:, :, number].flatten(0, 1).contiguous().numpy()
        found = np.unique(references.inverted.search(asked, k, params=parameters)[1])
        proposals.append(torch.from_numpy(found[found >= 0]))
    column = torch.nn.utils.rnn.pad_sequence(proposals, batch_first=True, padding_value=-1)
    cosine = torch.einsum("mvbd,bpd->mvbp", views, rows[column]).amax((0, 1)).masked_fill(column < 0, -2)
    return cosine, column.clamp(min=0)


def _members(wanted: Tensor, groups: Tensor) -> list[list[Tensor]]:
    """The references that are in the groups of each query `[q, m]`: m lists of their numbers."""
    order = groups.argsort(stable=True)
    ordered = groups[order]
    first, last = (torch.searchsorted(ordered, wanted.contiguous(), right=right) for right in (False, True))
    return [
        [order[a:b] for a, b in zip(*ends, strict=True)] for ends in zip(first.tolist(), last.tolist(), strict=True)
    ]
