from pathlib import Path

import numpy as np

from tasks.distances.feature_cache import cached


def test_features_are_kept_until_anything_they_came_from_changes(tmp_path: Path) -> None:
    calls = []

    def compute(items: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(items))
        return {"sum": items.sum(axis=(1, 2, 3)), "first": items[:, 0, 0, 0]}

    pictures = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    extractor = {"name": "sum", "weights": "abc"}
    first = cached(tmp_path, pictures, extractor, compute)
    again = cached(tmp_path, pictures.copy(), dict(extractor), compute)
    assert len(calls) == 1
    np.testing.assert_array_equal(first["sum"], again["sum"])

    changed = pictures.copy()
    changed[3, 1, 2, 0] ^= 1
    assert cached(tmp_path, changed, extractor, compute)["sum"][3] != first["sum"][3]
    cached(tmp_path, pictures, {**extractor, "weights": "abd"}, compute)
    cached(tmp_path, pictures.astype(np.int16), extractor, compute)
    cached(tmp_path, pictures.reshape(5, 2, 8, 3), extractor, compute)
    assert len(calls) == 5
    assert not list(tmp_path.glob("*.tmp*"))
