from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks.metrics.feature_cache import Blocks, cached


def in_blocks(items: np.ndarray, rows: int) -> Blocks:
    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(items), rows):
            yield items[start : start + rows]

    return blocks


def test_features_are_computed_again_if_anything_they_depend_on_changes(tmp_path: Path) -> None:
    calls = []

    def compute(items: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(items))
        return {"sum": items.sum(axis=(1, 2, 3)), "first": items[:, 0, 0, 0]}

    def features(items: np.ndarray, about: dict[str, str | int], rows: int = 5) -> dict[str, np.ndarray]:
        return cached(tmp_path, in_blocks(items, rows), about, compute, "sums")

    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    about: dict[str, str | int] = {"network": "sum", "weights": "abc"}
    first = features(pictures, about)
    again = features(pictures.copy(), dict(about))
    in_pieces = features(pictures, about, rows=2)
    assert calls == [5]
    for other in (again, in_pieces):
        np.testing.assert_array_equal(first["sum"], other["sum"])
    np.testing.assert_array_equal(first["sum"], pictures.sum(axis=(1, 2, 3)))

    changed = pictures.copy()
    changed[3, 1, 2, 0] ^= 1
    assert features(changed, about, rows=2)["sum"][3] != first["sum"][3]
    assert calls == [5, 2, 2, 1]  # never more than a block at once
    features(pictures, {**about, "weights": "abd"})
    features(pictures, {**about, "resize": "bicubic"})
    features(pictures.astype(np.int16), about)
    features(pictures.reshape(5, 2, 8, 3), about)
    features(pictures[:4], about)
    assert len(calls) == 9
    assert not list(tmp_path.glob("*.tmp*"))
