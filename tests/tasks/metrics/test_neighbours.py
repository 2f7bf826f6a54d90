from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.common.errors import DataError
from tasks.metrics import neighbours
from tasks.metrics.neighbours import lengths, merge, search, search_part


def reference(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(queries[:, None].astype(np.float64) - base[None], axis=-1)
    index = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, index, 1), index


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_equals_brute_force_in_float64() -> None:
    queries, base = normal(40, 99, 0), normal(500, 99, 1)
    distance, index = reference(queries, base, 5)
    found = search(queries, base, 5)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


def test_blocks_change_nothing() -> None:
    queries, base = normal(30, 20, 0), normal(301, 20, 1)
    whole = search(queries, base, 7)
    for blocks in (np.array_split(base, 4), [base[:2], base[2:3], base[3:]]):
        parts = search(queries, blocks, 7)
        np.testing.assert_array_equal(parts.index, whole.index)
        np.testing.assert_array_equal(parts.distance, whole.distance)


def test_near_copies_keep_their_distance() -> None:
    """Bright pictures in the range 0-255: float32 products alone are off by tens."""
    base = np.random.default_rng(0).integers(200, 256, (300, 12288)).astype(np.float32)
    queries = base[:3].copy()
    queries[1, :100] += 1  # squared distance 100
    queries[2] += np.float32(1e-3)
    found = search(queries, base, 2)
    assert found.distance[0, 0] == 0.0
    assert found.distance[1, 0] == 10.0
    true = np.linalg.norm(queries[2].astype(np.float64) - base[2])
    assert found.distance[2, 0] == pytest.approx(true, rel=1e-6)
    np.testing.assert_array_equal(found.index[:, 0], [0, 1, 2])


def test_many_equal_rows_do_not_hide_a_nearer_one() -> None:
    """More near-ties than spare candidates, apart by less than float32 can tell at this offset."""
    base = np.full((200, 64), 1000, np.float32)
    base[:, 0] += np.linspace(0.01, 0.02, 200, dtype=np.float32)
    base = base[np.random.default_rng(0).permutation(200)]
    query = np.full((1, 64), 1000, np.float32)
    distance, index = reference(query, base, 3)
    found = search(query, base, 3)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
    np.testing.assert_array_equal(np.sort(found.index), np.sort(index))


def test_agrees_with_torch_on_a_thousand_queries() -> None:
    queries, base = normal(1000, 64, 2), normal(2000, 64, 3)
    expected = torch.cdist(torch.from_numpy(queries).double(), torch.from_numpy(base).double()).topk(2, largest=False)
    found = search(queries, base, 2)
    np.testing.assert_array_equal(found.index, expected.indices.numpy())


def test_refuses_what_it_cannot_answer() -> None:
    x = normal(5, 3, 0)
    with pytest.raises(ValueError, match="6 neighbours were asked of 5 rows"):
        search(x, x, 6)
    with pytest.raises(DataError, match="the base: 2 features a row where 3"):
        search(x, x[:, :2], 1)
    x[2, 0] = np.inf
    with pytest.raises(DataError, match="the queries: 1 of 5 rows are not finite"):
        search(x, x, 1)


def test_parts_of_ranks_merge_to_the_whole(tmp_path: Path) -> None:
    queries, base = normal(25, 12, 0), normal(90, 12, 1)
    base[[40, 71]] = queries[3]  # a tie between blocks of different ranks
    blocks = []
    for number, block in enumerate(np.split(base, [10, 12, 40, 71])):
        np.save(tmp_path / f"{number}.npy", block)
        blocks.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    whole = search(queries, base, 4)
    assert list(whole.index[3, :2]) == [40, 71]
    for world in (1, 2, 3, 7):
        merged = merge([search_part(queries, blocks, 4, rank, world) for rank in range(world)])
        np.testing.assert_array_equal(merged.index, whole.index)
        np.testing.assert_array_equal(merged.distance, whole.distance)
    nothing = search_part(queries, blocks, 4, 6, 7)
    assert np.isinf(nothing.distance).all() and (nothing.index == -1).all()


def test_rows_searched_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, base = normal(30, 20, 0), normal(301, 20, 1)
    base[77:140] = queries[5] + normal(63, 20, 3) * 1e-4  # more near copies than are proposed at first
    whole = search(queries, base, 3)
    monkeypatch.setattr(neighbours, "NUMBERS", 800)
    pieces = search(queries, base, 3)
    np.testing.assert_array_equal(pieces.index, whole.index)
    np.testing.assert_array_equal(pieces.distance, whole.distance)
    base[250, 3] = np.nan
    with pytest.raises(DataError, match="the base: 1 of 301 rows are not finite, the first is row 250"):
        search(queries, base, 3)


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_cores_change_nothing(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    queries, blocks = normal(60, 20, 0), [normal(70, 20, 1) + 9, normal(31, 20, 2) + 9]  # far from the origin
    blocks[1][:9] = blocks[0][9:18] = queries[41] + np.float32(9)  # ties and near copies between blocks
    blocks[1][9:20] = blocks[1][0] + normal(11, 20, 3) * 1e-5
    queries += 9
    distance, index = reference(queries, np.concatenate(blocks), 4)
    monkeypatch.setattr(neighbours, "SHARE", 8)
    monkeypatch.setattr(neighbours, "CHUNK", 50)
    monkeypatch.setattr(neighbours.faiss, "omp_get_max_threads", lambda: cores)
    found = search(queries, blocks, 4)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
    blocks[1][5, 5] = np.inf
    with pytest.raises(DataError, match="the base: 1 of 31 rows are not finite, the first is row 5"):
        search(queries, blocks, 4)


def test_rows_about_the_origin_are_not_copied_to_be_centred() -> None:
    rows = normal(100, 8, 0)
    near = rows + np.float32(0.3)
    assert neighbours._centre(near, lengths(near)) is None
    far = neighbours._centre(rows + 2, lengths(rows + 2))
    assert far is not None and np.abs(far - 2).max() < 0.5
