"""The versions of the dataset in this workspace, to compare a new version with the one before.

They are kept in `.contrapposto/datasets.json`, outside DVC's outputs: the same inputs must give the same outputs
everywhere, and a fresh clone has no earlier version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.dataset import clusters, coverage
from tasks.dataset.clusters import Clusters
from tasks.dataset.dataset_table import PERSONS, Persons

_VERSIONS = 20  # that are kept


@dataclass(frozen=True)
class Shift:
    """How the shares of some classes have changed: persons in each class, before and now."""

    names: list[str]
    before: list[int]
    now: list[int]

    @property
    def stability_index(self) -> float:
        """The population stability index, see `coverage.population_stability`."""
        return coverage.population_stability(self.before, self.now)


@dataclass(frozen=True)
class Drift:
    """What has changed since the version with the digest `since`."""

    since: str
    categories: Shift
    clusters: Shift  # those of the earlier version, to which the present poses are assigned


def digest(root: Path) -> str:
    """The name of the version in data/dataset: the first 16 hexadecimal digits of its sha256."""
    return hashlib.sha256((root / paths.DATASET / PERSONS).read_bytes()).hexdigest()[:16]


def previous(root: Path, statistics: dict[str, Any]) -> dict[str, Any] | None:
    """The statistics of the version before the one in data/dataset, or None. The present version is remembered."""
    path, now = root / paths.DATASET_HISTORY, digest(root)
    past: list[dict[str, Any]] = files.read_json(path) if path.is_file() else []
    names = [version["digest"] for version in past]
    if now in names:
        at = names.index(now)
        return past[at - 1] if at else None
    files.write_json(path, [*past, {"digest": now, **statistics}][-_VERSIONS:])
    return past[-1] if past else None


def drift(before: dict[str, Any], now: dict[str, Any], persons: Persons) -> Drift:
    """The drift of categories and pose clusters between the statistics of two versions. `persons`: the present ones."""
    axis, centroids = (np.array(before[name], np.float32) for name in ("axis", "centroids"))
    cluster = Clusters(axis, centroids, {}).assign(persons.pose)
    names = sorted({*before["categories"], *now["categories"]})
    categories = ([version["categories"].get(name, 0) for name in names] for version in (before, now))
    return Drift(
        since=before["digest"],
        categories=Shift(names, *categories),
        clusters=Shift(
            [clusters.name(i) for i in range(len(centroids))],
            before["cluster_counts"],
            np.bincount(cluster, minlength=len(centroids)).tolist(),
        ),
    )
