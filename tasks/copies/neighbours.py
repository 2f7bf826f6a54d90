"""Exact nearest neighbours with FAISS, streamed block by block. The only module that imports faiss.

FAISS computes squared distances in float32 as |q|^2 - 2 q.x + |x|^2, which loses everything for near copies: two
identical pictures can come back at a distance above zero (faiss issues #297, #5327). So it only proposes candidates;
their distances are computed again from the differences in float64, and a rounding-error bound certifies that nothing
nearer was left out. The few queries without a certificate are searched again in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np

from tasks.distances.estimate import check_features

SPARES = (6, 64, 512)  # candidates proposed beyond k; more for the queries that fewer could not certify
CHUNK = 1 << 23  # float64 numbers held at once while distances are computed again


class Neighbours(NamedTuple):
    """`distance` float64 `[q, k]`, Euclidean, ascending; `index` int64 `[q, k]` into the blocks laid end to end."""

    distance: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody calls


def _squared_distances(queries: np.ndarray, rows: np.ndarray, block: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances float64 `[p]` of the pairs (queries[rows], block[columns]), from differences."""
    squared = np.empty(len(rows))
    step = max(1, CHUNK // queries.shape[1])
    for start in range(0, len(rows), step):
        pairs = slice(start, start + step)
        difference = np.subtract(block[columns[pairs]], queries[rows[pairs]], dtype=np.float64)
        squared[pairs] = np.einsum("pd,pd->p", difference, difference)
    return squared


def _best(squared: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row, ascending; equal distances by index, so that the order of blocks cannot matter."""
    order = np.lexsort((index, squared), axis=1)[:, :k]
    return np.take_along_axis(squared, order, 1), np.take_along_axis(index, order, 1)


def _all_distances(queries: np.ndarray, blocks: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest by float64 differences with every row: slow and certain."""
    squared = np.full((len(queries), k), np.inf)
    index = np.full((len(queries), k), -1, np.int64)
    offset = 0
    for block in blocks:
        for row, query in enumerate(queries):
            difference = np.subtract(block, query, dtype=np.float64)
            here = np.einsum("nd,nd->n", difference, difference)
            near = np.argpartition(here, min(k, len(here)) - 1)[:k]
            squared[row : row + 1], index[row : row + 1] = _best(
                np.append(squared[row], here[near])[None], np.append(index[row], near + offset)[None], k
            )
        offset += len(block)
    return squared, index


def _norms(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))


def _propose(
    queries: np.ndarray, blocks: Sequence[np.ndarray], k: int, spare: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k nearest among k + spare candidates a block: squared distances and indices `[q, k]`, and which queries these
    are certain for."""
    squared = np.full((len(queries), k), np.inf)
    index = np.full((len(queries), k), -1, np.int64)
    centre: np.ndarray | None = None  # distances do not move with the origin, rounding does
    proposed_below = np.full(len(queries), np.inf)  # every row at a smaller squared distance has been proposed
    offset = 0
    for source in blocks:
        block = np.ascontiguousarray(check_features("the base", source, queries.shape[1]), dtype=np.float32)
        if centre is None:
            centre = block.mean(axis=0)
            centred_queries = queries - centre
            reach = _norms(centred_queries)
        centred = block - centre
        proposed = min(k + spare, len(block))
        approximate, candidate = faiss.knn(centred_queries, centred, proposed)
        # Rounding of sums of float32 products: sqrt(width) units in the last place times 8, a bound that fails with
        # probability below 1e-13 (Higham & Mary 2019, theorem 2.4); the worst case is width units.
        rounding = 8 * np.sqrt(queries.shape[1]) * 2.0**-24 * (reach + _norms(centred).max()) ** 2
        if proposed < len(block):
            proposed_below = np.minimum(proposed_below, approximate[:, -1] - rounding)
        # What is farther than the k-th candidate by more than twice the rounding is not among the k nearest.
        within = approximate <= (approximate[:, min(k, proposed) - 1] + 2 * rounding)[:, None]
        rows, columns = np.nonzero(within)
        here = np.full(candidate.shape, np.inf)
        here[within] = _squared_distances(queries, rows, block, candidate[rows, columns])
        squared, index = _best(np.hstack([squared, here]), np.hstack([index, candidate.astype(np.int64) + offset]), k)
        offset += len(block)
    if offset < k:
        raise ValueError(f"{k} neighbours were asked of {offset} rows")
    return squared, index, squared[:, -1] <= proposed_below


def search(queries: np.ndarray, base: np.ndarray | Sequence[np.ndarray], k: int) -> Neighbours:
    """The k nearest rows of `base` to each row of `queries` float32 `[q, d]`, exact, by Euclidean distance.

    `base` is an array `[n, d]` or a sequence of such blocks (one a shard, read when indexed): one block and q x k
    partial results are in memory at a time. Raises DataError on features that are not finite or of another width,
    ValueError if `base` has fewer than k rows.
    """
    blocks: Sequence[np.ndarray] = [base] if isinstance(base, np.ndarray) else base
    queries = np.ascontiguousarray(check_features("the queries", queries), dtype=np.float32)
    # Above this many queries FAISS uses BLAS, which at a width of 99 is five times as fast as its own loop; its
    # default asks for q * d >= 128,000.
    faiss.cvar.distance_compute_blas_threshold = 1
    squared = np.empty((len(queries), k))
    index = np.empty((len(queries), k), np.int64)
    doubtful = np.arange(len(queries))
    for spare in SPARES:
        squared[doubtful], index[doubtful], certain = _propose(queries[doubtful], blocks, k, spare)
        doubtful = doubtful[~certain]
        if not len(doubtful):
            break
    else:
        squared[doubtful], index[doubtful] = _all_distances(queries[doubtful], blocks, k)
    return Neighbours(np.sqrt(squared), index)
