"""The versions of the dataset that this workspace has seen, so that a new one can be compared with the one before.

Kept in `.contrapposto/datasets.json`, outside DVC's outputs: what came before is no property of a dataset, and the same
inputs must give the same outputs everywhere. A fresh clone begins without a past.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.dataset import coverage
from tasks.dataset.clusters import Clusters
from tasks.dataset.dataset_table import PERSONS, Persons

_KEPT = 20  # versions


def digest(root: Path) -> str:
    """What the version in data/dataset is known by: its first 16 hexadecimal digits of sha256."""
    return hashlib.sha256((root / paths.DATASET / PERSONS).read_bytes()).hexdigest()[:16]


def previous(root: Path, statistics: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics of the version before the one in data/dataset, or None; the present one is remembered."""
    path, now = root / paths.DATASET_HISTORY, digest(root)
    past: list[dict[str, Any]] = files.read_json(path) if path.is_file() else []
    names = [version["digest"] for version in past]
    if now in names:
        at = names.index(now)
        return past[at - 1] if at else None
    files.write_json(path, [*past, {"digest": now, **statistics}][-_KEPT:])
    return past[-1] if past else None


def drift(before: dict[str, Any], now: dict[str, Any], persons: Persons) -> dict[str, Any]:
    """Population stability of categories and of pose clusters since a version, and the categories' shares then and now.

    The clusters are those of the version before: the present poses are assigned to them.
    """
    axis, centroids = (np.array(before[name], np.float32) for name in ("axis", "centroids"))
    cluster = Clusters(axis, centroids, {}).assign(persons.pose)
    counts = {
        "categories": _aligned(before["categories"], now["categories"]),
        "clusters": (before["cluster_counts"], np.bincount(cluster, minlength=len(centroids)).tolist()),
    }
    return {
        "since": before["digest"],
        **{name: coverage.population_stability(*pair) for name, pair in counts.items()},
        "counts": counts,
        "names": sorted({*before["categories"], *now["categories"]}),
    }


def _aligned(before: dict[str, int], now: dict[str, int]) -> tuple[list[int], list[int]]:
    names = sorted({*before, *now})
    return [before.get(name, 0) for name in names], [now.get(name, 0) for name in names]
