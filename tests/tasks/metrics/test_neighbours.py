from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.common.errors import DataError
from tasks.metrics import neighbours
from tasks.metrics.neighbours import search


def reference(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(queries[:, None].astype(np.float64) - base[None], axis=-1)
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, index, 1), index


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_neighbours_equal_brute_force_in_float64() -> None:
    queries, base = normal(40, 99, 0), normal(500, 99, 1)
    distance, index = reference(queries, base, 5)
    nearest = search(queries, base, 5)
    np.testing.assert_array_equal(nearest.index, index)
    np.testing.assert_allclose(nearest.distance, distance, rtol=1e-12)


def test_distances_of_near_copies_are_exact() -> None:
    """Bright pictures in the range 0-255: float32 products alone are off by tens."""
    base = np.random.default_rng(0).integers(200, 256, (300, 12288)).astype(np.float32)
    queries = base[:3].copy()
    queries[1, :100] += 1  # squared distance 100
    queries[2] += np.float32(1e-3)
    nearest = search(queries, base, 2)
    assert nearest.distance[0, 0] == 0.0
    assert nearest.distance[1, 0] == 10.0
    true = np.linalg.norm(queries[2].astype(np.float64) - base[2])
    assert nearest.distance[2, 0] == pytest.approx(true, rel=1e-6)
    np.testing.assert_array_equal(nearest.index[:, 0], [0, 1, 2])


@pytest.mark.parametrize("rows", [40, 200, 800])
def test_many_near_ties_do_not_hide_a_nearer_row(rows: int) -> None:
    """More near-ties than spare candidates, apart by less than float32 can tell at this offset."""
    base = np.full((rows, 64), 1000, np.float32)
    base[:, 0] += np.linspace(0.01, 0.02, rows, dtype=np.float32)
    base = base[np.random.default_rng(0).permutation(rows)]
    query = np.full((1, 64), 1000, np.float32)
    distance, index = reference(query, base, 3)
    nearest = search(query, base, 3)
    np.testing.assert_allclose(nearest.distance, distance, rtol=1e-12)
    np.testing.assert_array_equal(np.sort(nearest.index), np.sort(index))


def test_equal_distances_are_ordered_by_index() -> None:
    queries, base = normal(3, 12, 0), normal(90, 12, 1)
    base[[71, 40, 5]] = queries[1]
    np.testing.assert_array_equal(search(queries, base, 4).index[1, :3], [5, 40, 71])
    np.testing.assert_array_equal(search(queries, base[:6], 2).index[1, 0], 5)
    equal = np.ones((50, 4), np.float32)
    np.testing.assert_array_equal(search(equal[:2], equal, 3).index, [[0, 1, 2], [0, 1, 2]])


def test_neighbours_of_a_thousand_queries_agree_with_torch() -> None:
    queries, base = normal(1000, 64, 2), normal(2000, 64, 3)
    expected = torch.cdist(torch.from_numpy(queries).double(), torch.from_numpy(base).double()).topk(2, largest=False)
    np.testing.assert_array_equal(search(queries, base, 2).index, expected.indices.numpy())


def test_numbers_too_large_for_float32_squares_are_searched_in_float64() -> None:
    base = normal(30, 4, 0) * np.float32(1e25)
    np.testing.assert_array_equal(search(base[:5], base, 2).index, reference(base[:5].astype(float), base, 2)[1])


def test_impossible_searches_are_refused() -> None:
    x = normal(5, 3, 0)
    with pytest.raises(ValueError, match="6 neighbours were asked of 5 rows"):
        search(x, x, 6)
    with pytest.raises(DataError, match="the base: 2 features a row where 3"):
        search(x, x[:, :2], 1)
    bad = x.copy()
    bad[2, 0] = np.inf
    with pytest.raises(DataError, match="the queries: 1 of 5 rows are not finite"):
        search(bad, x, 1)
    with pytest.raises(DataError, match="the base: 1 of 5 rows are not finite, the first is row 2"):
        search(x, bad, 1)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_results_do_not_depend_on_the_number_of_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, base = normal(60, 20, 0) + 9, normal(101, 20, 1) + 9  # far from the origin
    base[70:79] = base[9:18] = queries[41]  # ties
    base[79:90] = base[70] + normal(11, 20, 3) * 1e-5
    distance, index = reference(queries, base, 4)
    monkeypatch.setattr(neighbours, "MIN_SHARE", 8)
    monkeypatch.setattr(neighbours, "CHUNK", 50)
    monkeypatch.setattr("faiss.omp_get_max_threads", lambda: threads)
    nearest = search(queries, base, 4)
    np.testing.assert_array_equal(nearest.index, index)
    np.testing.assert_allclose(nearest.distance, distance, rtol=1e-12)
