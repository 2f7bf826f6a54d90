"""Exact nearest neighbours with FAISS, streamed block by block.

FAISS computes squared distances in float32 as |q|^2 - 2 q.x + |x|^2, which loses everything for near copies: two
identical pictures can come back at a distance above zero (faiss issues #297, #5327). So it only proposes candidates;
their distances are computed again from the differences in float64, and a rounding-error bound certifies that nothing
nearer was left out. The few queries without a certificate are searched again in float64.

Every core takes its share of the queries through all rows. FAISS's own threads meet after every block of products, and
where another process has one of the cores they wait for each other most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import faiss
import numpy as np

from tasks.metrics.estimate import check_features

SPARES = (2, 64, 512)  # candidates proposed beyond k; more for the queries that fewer could not certify
NUMBERS = 1 << 22  # float32 numbers centred and searched at once, by all cores: a shard needs no centred copy of itself
CHUNK = 1 << 17  # float64 numbers held at once while distances are computed again: as many as a core's cache holds
SHARE = 32  # queries of a core below which FAISS shares out the rows instead


class Neighbours(NamedTuple):
    """`distance` float64 `[q, k]`, Euclidean, ascending; `index` int64 `[q, k]` into the blocks laid end to end."""

    distance: np.ndarray
    index: np.ndarray  # type: ignore[assignment]  # hides tuple.index, which nobody calls


def squared_distances(queries: np.ndarray, rows: np.ndarray, block: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances float64 `[p]` of the pairs (queries[rows], block[columns]), from differences."""
    squared = np.empty(len(rows))
    step = max(1, CHUNK // queries.shape[1])
    for start in range(0, len(rows), step):
        pairs = slice(start, start + step)
        difference = np.subtract(block[columns[pairs]], queries[rows[pairs]], dtype=np.float64)
        np.einsum("pd,pd->p", difference, difference, out=squared[pairs])
    return squared


def _best(squared: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row, ascending; equal distances by index, so that the order of blocks cannot matter."""
    order = np.lexsort((index, squared), axis=1)[:, :k]
    return np.take_along_axis(squared, order, 1), np.take_along_axis(index, order, 1)


def _of_rank(blocks: Sequence[np.ndarray], rank: int, world: int) -> Iterator[tuple[np.ndarray, int]]:
    """The blocks of one rank, each with the number of rows before it in all blocks."""
    offset = 0
    for number in range(len(blocks)):
        block = blocks[number]
        rows = len(block)
        if number % world == rank:
            yield block, offset
        del block  # before the next is read
        offset += rows


def _all_distances(
    queries: np.ndarray, blocks: Iterable[tuple[np.ndarray, int]], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest by float64 differences with every row: slow and certain."""
    squared = np.full((len(queries), k), np.inf)
    index = np.full((len(queries), k), -1, np.int64)
    for block, offset in blocks:
        for row, query in enumerate(queries):
            difference = np.subtract(block, query, dtype=np.float64)
            here = np.einsum("nd,nd->n", difference, difference)
            near = np.argpartition(here, min(k, len(here)) - 1)[:k]
            squared[row : row + 1], index[row : row + 1] = _best(
                np.append(squared[row], here[near])[None], np.append(index[row], near + offset)[None], k
            )
    return squared, index


def lengths(x: np.ndarray) -> np.ndarray:
    """Lengths of rows float32 `[n, d]`, to three digits: enough for a bound, and infinite where a square is."""
    return np.sqrt(np.einsum("nd,nd->n", x, x)) * 1.001


def rounding(width: int, reach: np.ndarray, longest: float) -> np.ndarray:
    """How far squared distances `[q]` by float32 products may be from the true ones, for rows of lengths `reach` `[q]` against
    rows no longer than `longest`.

    sqrt(width) units in the last place times 8, a bound that fails with probability below 1e-13 (Higham & Mary 2019,
    theorem 2.4); the worst case is width units.
    """
    return 8 * np.sqrt(width) * 2.0**-24 * (reach.astype(np.float64) + longest) ** 2


def _finite_lengths(name: str, x: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Lengths of some rows of the whole; DataError where a number is not finite. Cheaper than a look at every number."""
    norms = lengths(x)
    if not np.isfinite(norms).all():  # or too large to be squared
        check_features(name, whole)
    return norms


def _centre(rows: np.ndarray, norms: np.ndarray) -> np.ndarray | None:
    """The mean of rows float32 `[n, d]`, or None where they already lie about the origin, so that moving them would cost a
    copy and hardly make their squared lengths, and with them the rounding, smaller."""
    centre = rows.mean(axis=0)
    return centre if centre @ centre > 0.25 * np.square(norms).mean() else None


class _Nearest:
    """The k nearest of each query so far, exact, and the squared distance below which every row has been looked at."""

    def __init__(self, queries: np.ndarray, reach: np.ndarray, k: int, spare: int, numbers: int) -> None:
        self._queries, self._reach, self._k, self._spare = queries, reach, k, spare
        self._step = max(1, numbers // queries.shape[1])
        self.squared = np.full((len(queries), k), np.inf)
        self.index = np.full((len(queries), k), -1, np.int64)
        self._proposed_below = np.full(len(queries), np.inf)
        self._started = False
        self._centre: np.ndarray | None = None  # distances do not move with the origin, rounding does
        self._centred_queries = queries
        self._centred = np.empty((0, queries.shape[1]), np.float32)

    def add(self, block: np.ndarray, offset: int) -> None:
        """Look at the rows float32 `[n, d]` of a block, numbered from `offset`, some at a time."""
        check_features("the base", block[:1], self._queries.shape[1])
        for start in range(0, len(block), self._step):
            rows = np.ascontiguousarray(block[start : start + self._step], dtype=np.float32)
            norms = _finite_lengths("the base", rows, block)
            if not self._started:
                self._start(rows, norms)
            centred = rows if self._centre is None else self._about_centre(rows, self._centre)
            self._add(rows, centred, (norms if centred is rows else lengths(centred)).max(), offset + start)

    def _start(self, rows: np.ndarray, norms: np.ndarray) -> None:
        self._started = True
        self._centre = _centre(rows, norms)
        if self._centre is not None:
            self._centred_queries = self._queries - self._centre
            self._reach = lengths(self._centred_queries)

    def _about_centre(self, rows: np.ndarray, centre: np.ndarray) -> np.ndarray:
        if len(self._centred) < len(rows):
            self._centred = np.empty_like(rows)
        return np.subtract(rows, centre, out=self._centred[: len(rows)])

    def _add(self, rows: np.ndarray, centred: np.ndarray, longest: float, offset: int) -> None:
        k = self._k
        proposed = min(k + self._spare, len(rows))
        approximate, candidate = faiss.knn(self._centred_queries, centred, proposed)
        slack = rounding(rows.shape[1], self._reach, longest)
        if proposed < len(rows):
            self._proposed_below = np.minimum(self._proposed_below, approximate[:, -1] - slack)
        # What is farther than the k-th, here or so far, by more than the rounding of both is not among the k nearest.
        here = approximate[:, min(k, proposed) - 1] + 2 * slack
        within = approximate <= np.minimum(here, self.squared[:, -1] + slack)[:, None]
        moved = np.flatnonzero(within.any(axis=1))
        within, candidate = within[moved], candidate[moved].astype(np.int64)
        some, columns = np.nonzero(within)
        squared = np.full(candidate.shape, np.inf)
        squared[within] = squared_distances(self._queries, moved[some], rows, candidate[some, columns])
        self.squared[moved], self.index[moved] = _best(
            np.hstack([self.squared[moved], squared]), np.hstack([self.index[moved], candidate + offset]), k
        )

    @property
    def certain(self) -> np.ndarray:
        """The queries for which no row that was not proposed can be nearer: bool `[q]`."""
        return self.squared[:, -1] <= self._proposed_below


@contextmanager
def _each(nearest: Sequence[_Nearest]) -> Iterator[Callable[[np.ndarray, int], None]]:
    """Shows a block to all of them at once, each on one core; to a single one on all cores."""
    if len(nearest) == 1:
        yield nearest[0].add
        return
    one_core = partial(faiss.omp_set_num_threads, 1)  # holds for the thread that calls it
    with ThreadPoolExecutor(len(nearest), initializer=one_core) as pool:

        def add(block: np.ndarray, offset: int) -> None:
            for done in [pool.submit(some.add, block, offset) for some in nearest]:
                done.result()

        yield add


def search_part(
    queries: np.ndarray, base: np.ndarray | Sequence[np.ndarray], k: int, rank: int = 0, world: int = 1
) -> Neighbours:
    """The k nearest among the rows of the blocks `rank`, `rank + world`, ... of `base`, exact; `merge` joins the parts.

    `index` counts the rows of all blocks. Where the part has fewer than k rows, the distance is infinite and the index
    -1. Of the blocks of other ranks only the length is asked, which costs nothing for memory-mapped ones.
    Raises DataError on features that are not finite or of another width.
    """
    blocks: Sequence[np.ndarray] = [base] if isinstance(base, np.ndarray) else base
    check_features("the queries", queries[:1])
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    reach = _finite_lengths("the queries", queries, queries)
    # Above this many queries FAISS uses BLAS, which at a width of 99 is five times as fast as its own loop; its
    # default asks for q * d >= 128,000.
    faiss.cvar.distance_compute_blas_threshold = 1
    squared = np.full((len(queries), k), np.inf)
    index = np.full((len(queries), k), -1, np.int64)
    asked, doubtful = queries, np.arange(len(queries))
    cores = faiss.omp_get_max_threads()
    for spare in SPARES:
        shares = cores if len(asked) >= SHARE * cores else 1
        split = zip(np.array_split(asked, shares), np.array_split(reach[doubtful], shares), strict=True)
        nearest = [_Nearest(*share, k, spare, NUMBERS // shares) for share in split]
        with _each(nearest) as add:
            for block, offset in _of_rank(blocks, rank, world):
                add(block, offset)
                del block
        squared[doubtful] = np.concatenate([some.squared for some in nearest])
        index[doubtful] = np.concatenate([some.index for some in nearest])
        doubtful = doubtful[~np.concatenate([some.certain for some in nearest])]
        if not len(doubtful):
            break
        asked = queries[doubtful]
    else:
        squared[doubtful], index[doubtful] = _all_distances(asked, _of_rank(blocks, rank, world), k)
    index[np.isinf(squared)] = -1
    return Neighbours(np.sqrt(squared), index)


def merge(parts: Sequence[Neighbours]) -> Neighbours:
    """The k nearest over all parts, from the k nearest of each."""
    distance, index = (np.hstack([part[field] for part in parts]) for field in (0, 1))
    return Neighbours(*_best(distance, index, parts[0].index.shape[1]))


def search(queries: np.ndarray, base: np.ndarray | Sequence[np.ndarray], k: int) -> Neighbours:
    """The k nearest rows of `base` to each row of `queries` float32 `[q, d]`, exact, by Euclidean distance.

    `base` is an array `[n, d]` or a sequence of such blocks (one a shard, read when indexed): one block, NUMBERS
    centred numbers and q x k partial results are in memory at a time. Raises DataError on features that are not finite or of
    another width, ValueError if `base` has fewer than k rows.
    """
    found = search_part(queries, base, k)
    if (found.index < 0).any():
        rows = len(base) if isinstance(base, np.ndarray) else sum(len(block) for block in base)
        raise ValueError(f"{k} neighbours were asked of {rows} rows")
    return found
