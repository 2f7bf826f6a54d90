"""Exact nearest neighbours: FAISS proposes candidates in float32, float64 decides.

FAISS computes squared distances in float32 as |q|^2 - 2 q.x + |x|^2. Cancellation destroys them for near copies: two
identical pictures can come back at a distance above zero (faiss issues #297, #5327). So FAISS proposes a few candidates more
than were asked for, and their distances are computed again in float64 from the differences. A bound on the rounding error
then proves that no other row is nearer. Queries without that proof are searched again with more candidates, and in the end
against every row.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import faiss
import numpy as np

from tasks.metrics.estimate import check_features

SPARES = (2, 64, 512)  # candidates beyond k, tried in turn for the queries without a proof
CHUNK = 1 << 17  # float64 numbers held at once while distances are computed again: they fit a core's cache
MIN_SHARE = 32  # queries a thread below which FAISS's own threads are used


class Neighbours(NamedTuple):
    """`distance` float64 `[q, k]`, Euclidean, ascending; `index` int64 `[q, k]`, rows of the base."""

    distance: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody calls


def squared_distances(queries: np.ndarray, rows: np.ndarray, base: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances float64 `[p]` of the pairs (queries[rows], base[columns]), from their differences."""
    squared = np.empty(len(rows))
    step = max(1, CHUNK // queries.shape[1])
    for start in range(0, len(rows), step):
        pairs = slice(start, start + step)
        difference = np.subtract(base[columns[pairs]], queries[rows[pairs]], dtype=np.float64)
        np.einsum("pd,pd->p", difference, difference, out=squared[pairs])
    return squared


def lengths(x: np.ndarray) -> np.ndarray:
    """Lengths of the rows of `x` float32 `[n, d]`, rounded up by 0.1% so that they can be used in a bound."""
    squares: np.ndarray = np.einsum("nd,nd->n", x, x)
    padded: np.ndarray = np.sqrt(squares) * 1.001
    return padded


def rounding_bound(width: int, query_lengths: np.ndarray, longest: float) -> np.ndarray:
    """Bound `[q]` on the rounding error of squared distances that were computed by float32 products.

    For queries of lengths `query_lengths` `[q]` and rows no longer than `longest`, `width` numbers each. It is
    8 sqrt(width) units in the last place and fails with probability below 1e-13 (Higham & Mary 2019, theorem 2.4); the
    worst case is `width` units.
    """
    bound: np.ndarray = 8 * np.sqrt(width) * 2.0**-24 * (query_lengths.astype(np.float64) + longest) ** 2
    return bound


def _smallest(squared: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row, ascending; ties in the order of `index`."""
    order = np.lexsort((index, squared), axis=1)[:, :k]
    return np.take_along_axis(squared, order, 1), np.take_along_axis(index, order, 1)


class _Base(NamedTuple):
    """The rows to search, as given, and moved to their mean: that changes no distance and makes the rounding smaller."""

    rows: np.ndarray
    centred: np.ndarray
    longest: float  # of the centred rows


def _search_share(base: _Base, k: int, queries: np.ndarray, centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and indices `[q, k]` of the nearest rows to some of the queries; `centred`: moved like the base."""
    squared = np.empty((len(queries), k))
    index = np.empty((len(queries), k), np.int64)
    bound = rounding_bound(queries.shape[1], lengths(centred), base.longest)
    unproven = np.arange(len(queries))
    for spare in SPARES:
        proposed = k + spare
        if not len(unproven) or proposed >= len(base.rows):
            break
        asked = centred if len(unproven) == len(centred) else centred[unproven]
        approximate, candidates = faiss.knn(asked, base.centred, proposed)
        slack = bound[unproven]
        # Candidates beyond this limit are farther than the k-th, whatever the rounding; most of the spares are.
        possible = approximate <= (approximate[:, k - 1] + 2 * slack)[:, None]
        rows, columns = np.nonzero(possible)
        exact = np.full(candidates.shape, np.inf)
        exact[possible] = squared_distances(queries, unproven[rows], base.rows, candidates[rows, columns])
        squared[unproven], index[unproven] = _smallest(exact, candidates, k)
        # Rows that were not proposed are at least as far as the last proposed one, up to rounding.
        proven = squared[unproven, -1] <= approximate[:, -1] - slack
        unproven = unproven[~proven]
    every = np.arange(len(base.rows))
    for query in unproven:
        exact = squared_distances(queries, np.full(len(every), query), base.rows, every)
        nearest = np.argpartition(exact, k - 1)[:k]
        nearest = np.union1d(nearest, np.flatnonzero(exact == exact[nearest].max()))  # all that tie for the last place
        squared[query], index[query] = (best[0] for best in _smallest(exact[nearest][None], nearest[None], k))
    return squared, index


def search(queries: np.ndarray, base: np.ndarray, k: int) -> Neighbours:
    """The k nearest rows of `base` `[n, d]` to each row of `queries` `[q, d]` by Euclidean distance; exact for float32 data.

    Ties are broken by the index. Raises DataError on features that are not finite or of different widths, ValueError if
    `base` has fewer than k rows.
    """
    check_features("the queries", queries)
    check_features("the base", base, queries.shape[1])
    if k > len(base):
        raise ValueError(f"{k} neighbours were asked of {len(base)} rows")
    same = queries is base
    base = np.ascontiguousarray(base, dtype=np.float32)
    queries = base if same else np.ascontiguousarray(queries, dtype=np.float32)
    mean = base.mean(axis=0)
    centred_base = base - mean
    centred_queries = centred_base if same else queries - mean
    # FAISS uses BLAS above this many queries. Its default asks for q * d >= 128,000, but at a width of 99 BLAS is five times
    # as fast as FAISS's own loop.
    faiss.cvar.distance_compute_blas_threshold = 1
    find = partial(_search_share, _Base(base, centred_base, float(lengths(centred_base).max())), k)
    threads = faiss.omp_get_max_threads()
    if threads == 1 or len(queries) < MIN_SHARE * threads:
        shares = [find(queries, centred_queries)]
    else:
        # One share of the queries a thread. FAISS's own threads wait for each other after every block of products, which
        # is slow where another process has one of the cores. The setting holds for the thread that makes it.
        with ThreadPoolExecutor(threads, initializer=partial(faiss.omp_set_num_threads, 1)) as pool:
            split = (np.array_split(part, threads) for part in (queries, centred_queries))
            shares = list(pool.map(find, *split))
    squared, index = (np.concatenate(column) for column in zip(*shares, strict=True))
    return Neighbours(np.sqrt(squared), index)
