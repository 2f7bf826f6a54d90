"""How well a dataset covers the poses and its categories, what is wrong with it in sentences, and how it has drifted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.common.skeleton import embed, mirror
from tasks.common.subset import evenly_spaced
from tasks.dataset.dataset_table import Persons

SMALL_CATEGORY = 30  # training persons; below, a category is hardly more than a list of examples
DOMINANT = 0.5  # of all persons from one group
_ASKED = 2000  # rows whose nearest neighbours are measured
_BLOCK = 128
_QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


def distances(persons: Persons) -> dict[str, dict[str, float]]:
    """How far apart the poses are: for training rows and for held-out rows the distance to the nearest training row of
    another group, mirrored or not (root mean square over joints, torso lengths), as quantiles.

    Large distances between training rows: the poses are sparse. Held-out rows much farther than training rows are from
    each other: the splits are not of one kind. A side without rows is absent.
    """
    train = persons.of("train")
    known = embed(persons.pose[train])
    groups = np.array(persons.group)
    names = {"train": train, "held_out": [i for i, split in enumerate(persons.split) if split != "train"]}
    out = {}
    for name, rows in names.items():
        asked = [rows[at] for at in evenly_spaced(len(rows), _ASKED)]
        nearest = _nearest(persons.pose[asked], groups[asked], known, groups[train])
        nearest = nearest[np.isfinite(nearest)]
        if len(nearest):
            out[name] = {label: round(float(np.quantile(nearest, q)), 4) for label, q in _QUANTILES.items()}
    return out


def _nearest(poses: np.ndarray, groups: np.ndarray, known: np.ndarray, known_groups: np.ndarray) -> np.ndarray:
    """Distance of each pose to the nearest known point of another group, float `[n]`; inf where there is none."""
    lengths = np.square(known).sum(axis=1)
    out = np.full(len(poses), np.inf)
    for points in (embed(poses), embed(mirror(poses))):
        for start in range(0, len(points), _BLOCK):
            block = points[start : start + _BLOCK]
            squared = np.square(block).sum(axis=1)[:, None] + lengths - 2 * block @ known.T
            squared[groups[start : start + _BLOCK, None] == known_groups] = np.inf
            nearest = np.sqrt(np.maximum(squared.min(axis=1, initial=np.inf), 0))
            out[start : start + _BLOCK] = np.minimum(out[start : start + _BLOCK], nearest)
    return out


def warnings(persons: Persons) -> list[str]:
    """What a person should know before training on this, one sentence each."""
    out = []
    n = len(persons)
    train = Counter(persons.category[i] for i in persons.of("train"))
    for category in sorted(set(persons.category)):
        if train[category] < SMALL_CATEGORY:
            count = f"{train[category]} training person{'s' if train[category] != 1 else ''}"
            out.append(f"{category} has {count}, too few to learn (below {SMALL_CATEGORY}).")
    name, size = Counter(persons.group).most_common(1)[0]
    if n > 1 and size >= DOMINANT * n:
        source = persons.source[persons.group.index(name)]
        out.append(f"{size} of {n} persons belong together with {source}: one source dominates.")
    for split in ("val", "test"):
        if not persons.of(split):
            out.append(f"The split {split} is empty: there are too few groups that do not belong together.")
    return out


def population_stability(before: Sequence[float], now: Sequence[float]) -> float:
    """The population stability index of two counts over the same classes: sum of (q - p) ln(q / p) over shares p and q.

    Half a row is added to every class, so that an empty one does not make it infinite. By custom below 0.1 nothing has
    happened, and above 0.25 the population is another.
    """
    p, q = (np.asarray(counts, float) + 0.5 for counts in (before, now))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def drift(before: Mapping[str, Any], now: Mapping[str, Any], counts_now: Sequence[int]) -> dict[str, float]:
    """Population stability of categories and of pose clusters between two versions' statistics.

    `counts_now`: the present rows in the clusters of the version before.
    """
    names = sorted({*before["categories"], *now["categories"]})
    categories = [[version["categories"].get(name, 0) for name in names] for version in (before, now)]
    return {
        "categories": population_stability(*categories),
        "clusters": population_stability(before["cluster_counts"], counts_now),
    }
