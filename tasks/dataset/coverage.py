"""How well a dataset covers poses and categories, warnings about it, and its drift between versions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tasks.common.skeleton import embed, mirror
from tasks.common.subset import evenly_spaced
from tasks.common.text import enumerated, one_line
from tasks.dataset.dataset_table import Persons

SMALL_CATEGORY = 30  # training persons: below this a model learns single examples rather than a category
DOMINANT = 0.5  # share of all persons in one group
_QUERIES = 2000  # rows whose nearest neighbours are measured
_BLOCK = 128
_QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


def distances(persons: Persons) -> dict[str, dict[str, float]]:
    """Quantiles of the distance to the nearest training row of another group, for training rows and for held-out rows.

    The distance is the root mean square over joints in torso lengths, to the pose or its mirror image. Large distances
    between training rows mean sparse poses; held-out rows much farther away than training rows mean that the splits
    differ in kind. A side without rows is absent.
    """
    train = persons.of("train")
    known = embed(persons.pose[train])
    groups = np.array(persons.group)
    names = {"train": train, "held_out": [i for i, split in enumerate(persons.split) if split != "train"]}
    out = {}
    for name, rows in names.items():
        queries = [rows[at] for at in evenly_spaced(len(rows), _QUERIES)]
        nearest = _nearest(persons.pose[queries], groups[queries], known, groups[train])
        nearest = nearest[np.isfinite(nearest)]
        if len(nearest):
            out[name] = {label: round(float(np.quantile(nearest, q)), 4) for label, q in _QUANTILES.items()}
    return out


def _nearest(poses: np.ndarray, groups: np.ndarray, known: np.ndarray, known_groups: np.ndarray) -> np.ndarray:
    """Distance of each pose to the nearest known point of another group, float `[n]`; inf if there is none."""
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
    """What to know before training on this dataset, one sentence each."""
    out = []
    n = len(persons)
    train = Counter(persons.category[i] for i in persons.of("train"))
    categories = sorted(set(persons.category))
    small = [category for category in categories if 0 < train[category] < SMALL_CATEGORY]
    if small:
        counts = enumerated([f"{category} ({train[category]})" for category in small])
        out.append(f"Too few training persons to learn (below {SMALL_CATEGORY}) in {_categories(small)}: {counts}.")
    unknown = [category for category in categories if not train[category]]
    if unknown:
        out.append(
            f"No training persons in {_categories(unknown)}, which the models will not know: {enumerated(unknown)}."
        )
    name, size = Counter(persons.group).most_common(1)[0]
    if n > 1 and size >= DOMINANT * n:
        source = one_line(persons.source[persons.group.index(name)])
        out.append(f"{size} of {n} persons are in the group of {source}: one source dominates.")
    for split in ("val", "test"):
        if not persons.of(split):
            out.append(f"The split {split} is empty: there are too few independent groups.")
    return out


def _categories(names: Sequence[str]) -> str:
    return f"{len(names)} categor{'y' if len(names) == 1 else 'ies'}"


def population_stability(before: Sequence[float], now: Sequence[float]) -> float:
    """The population stability index of two counts over the same classes: sum of (q - p) ln(q / p) over shares p and q.

    Half a row is added to every class, so that an empty class does not make the index infinite. By convention, below 0.1
    there is no drift and above 0.25 the population has changed.
    """
    p, q = (np.asarray(counts, float) + 0.5 for counts in (before, now))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())
