"""Stage `curate`: decide which persons are kept, which belong to one group, and which split each group goes to.

Reads `data/poses/` and the opt-outs. Writes `data/dataset/` (see `dataset_table`) with

    summary.json      counts by reason, groups, splits, distances, warnings
    clusters.json     the pose clusters, from which the drift of the next version is measured
    captions.json     source -> caption, if any picture has one
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.skeleton import normalise
from tasks.config.params import Curate, Params
from tasks.dataset import clusters, coverage, dataset_table, near_duplicates, opt_outs
from tasks.dataset.clusters import Clusters
from tasks.dataset.crop import square
from tasks.dataset.dataset_table import Gate, Gated, Persons
from tasks.dataset.gate import gate
from tasks.dataset.groups import NONE_NEAR, Near, group, thin
from tasks.dataset.split_assignment import assign
from tasks.extract import parts
from tasks.extract.poses_table import Poses

log = logging.getLogger(__name__)

SHOWN = 10  # pairs on either side of the cut that are listed for people to look at

Refused = dict[int, tuple[Gate, str]]  # row -> reason, detail


def run(params: Params, root: Path) -> None:
    """Gate, group, thin, cluster and split the persons. Raises DataError if nobody is kept."""
    config = params.curate
    table = parts.read_poses(root, params.raw)
    if not len(table):
        raise DataError(_nobody_found(params, root))
    refused = _refused(table, config, root)
    passed = [i for i in range(len(table)) if i not in refused]
    if not passed:
        counts = Counter(reason.value for reason, _ in refused.values())
        reasons = ", ".join(f"{reason} {n}" for reason, n in counts.most_common())
        raise DataError(f"None of the {len(table)} persons found is kept ({reasons}): see `curate` in params.yaml.")
    poses = normalise(table.world[passed])
    near, shown = _near(table, passed, config.near_duplicate)
    groups, joins = group(
        [table.key[i] for i in passed],
        [[table.source[i] for i in passed]],
        table.fingerprint[passed],
        near,
        config.near_duplicate,
        shown,
    )
    refused |= _thinned(table, passed, groups, poses, config.group_cap)
    group_of = dict(zip(passed, groups, strict=True))
    kept = [i for i in passed if i not in refused]
    groups_kept = [group_of[i] for i in kept]
    poses_kept = poses[[i not in refused for i in passed]]
    clustering = clusters.fit(poses_kept)
    persons, moved = _persons(table, kept, groups_kept, poses_kept, clustering, config)
    gated = [
        Gated(table.key[i], table.source[i], int(table.frame[i]), table.category[i], group_of.get(i, ""), *refused[i])
        for i in sorted(refused)
    ]
    summary: dict[str, Any] = {
        "persons_found": len(table),
        "persons_kept": len(persons),
        "gated": dict(Counter(row.reason for row in gated)),
        "splits": {split: len(persons.of(split)) for split in dataset_table.SPLITS},
        "categories": dict(Counter(persons.category)),
        "groups": len(set(groups)),
        "largest_group": max(Counter(groups).values()),
        "groups_above_one": sum(size > 1 for size in Counter(groups).values()),
        "joins": joins,
        "pairs_near_the_cut": _near_the_cut(table, passed, groups, near, config.near_duplicate),
        "moved_groups": moved,
        "distances": coverage.distances(persons),
        "warnings": coverage.warnings(persons),
    }
    kept_sources = set(persons.source)
    captions = {name: text for name, text in parts.captions(root, params.raw).items() if name in kept_sources}
    with files.new_folder(root / paths.DATASET) as folder:
        dataset_table.write(folder, persons, gated)
        files.write_json(folder / "summary.json", summary)
        files.write_json(folder / "clusters.json", _statistics(persons, clustering))
        if captions:
            files.write_json(folder / parts.CAPTIONS, captions)
    splits = ", ".join(f"{n} {split}" for split, n in summary["splits"].items())
    log.info(f"{len(persons)} of {len(table)} persons kept: {splits}")
    for sentence in summary["warnings"]:
        log.info(sentence)


def _nobody_found(params: Params, root: Path) -> str:
    extraction = parts.summary(root, params.raw)
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(extraction["rejects"]).most_common())
    folders = ", ".join(params.raw.parts.values())
    return (
        f"Nobody was found in the {extraction['files']} files of {folders} ({reasons}). Each refusal with its reason is in "
        f"{root / paths.POSES}."
    )


def _refused(table: Poses, config: Curate, root: Path) -> Refused:
    """Refusals that concern a single row: opted out, below the gate, or the same file as in an earlier part."""
    refused: Refused = {
        i: (Gate.FORGOTTEN, f"as {key}")
        for i, key in opt_outs.match(table, opt_outs.read(root), config.near_duplicate).items()
    }
    for i, refusal in gate(table, config).items():
        refused.setdefault(i, refusal)
    first: dict[str, int] = {}
    for i, key in enumerate(table.key):
        if i not in refused and first.setdefault(key, i) != i:
            refused[i] = Gate.IN_ANOTHER_PART, f"the same bytes as {table.source[first[key]]}"
    return refused


def _near(table: Poses, passed: list[int], cut: float) -> tuple[Near, np.ndarray]:
    """The pairs of near-duplicates among the rows that passed, and the number of each row's picture."""
    these = near_duplicates.pictures(table, passed)
    if not cut:
        return NONE_NEAR, these.of_row
    pairs = near_duplicates.duplicates(these, cut)
    query, reference = these.row[pairs.query.numpy()], these.row[pairs.reference.numpy()]
    return Near(np.minimum(query, reference), np.maximum(query, reference), pairs.distance.numpy()), these.of_row


def _near_the_cut(
    table: Poses, passed: list[int], groups: list[str], near: Near, cut: float
) -> list[dict[str, str | float | bool]]:
    """The pairs nearest to the cut, as many on either side, by distance: for people to look at."""
    order = np.lexsort((near.others, near.rows, near.distance))
    below = int(np.searchsorted(near.distance[order], cut, side="right"))
    return [
        {
            "key": table.key[passed[near.rows[at]]],
            "other": table.key[passed[near.others[at]]],
            "distance": round(float(near.distance[at]), 3),
            "one_group": groups[near.rows[at]] == groups[near.others[at]],
        }
        for at in order[max(0, below - SHOWN) : below + SHOWN].tolist()
    ]


def _thinned(table: Poses, passed: list[int], groups: list[str], poses: np.ndarray, cap: int) -> Refused:
    """Refusals inside a group: repeated poses, and rows above the cap. Larger persons are preferred."""
    best = np.lexsort((np.array([table.key[i] for i in passed]), -table.person_pixels[passed]))
    rank = np.empty(len(passed), np.int64)
    rank[best] = np.arange(len(passed))
    repeats, above = thin(groups, poses, rank, cap)
    out: Refused = {passed[at]: (Gate.REPEATED_POSE, "a better row of its group has the same pose") for at in repeats}
    return out | {passed[at]: (Gate.ABOVE_CAP, f"at most {cap}, of a group") for at in above}


def _persons(
    table: Poses, kept: list[int], groups: list[str], poses: np.ndarray, clustering: Clusters, config: Curate
) -> tuple[Persons, list[str]]:
    """The table of kept persons, and the groups that are not in the split that their hash alone gives."""
    split, moved = assign(groups, config.seed, config.val, config.test)
    cluster = clustering.assign(poses)
    pictured, pixels = table.pictured, table.pixels
    persons = Persons(
        key=[table.key[i] for i in kept],
        source=[table.source[i] for i in kept],
        source_kind=[table.source_kind[i] for i in kept],
        category=[table.category[i] or clusters.name(c) for i, c in zip(kept, cluster.tolist(), strict=True)],
        group=groups,
        split=[split[name] for name in groups],
        frame=table.frame[kept],
        cluster=cluster,
        crop=np.array([square(pixels[i], config.margin) if pictured[i] else (0, 0, 0) for i in kept], np.int32),
        pose=poses,
    )
    return persons, moved


def _statistics(persons: Persons, clustering: Clusters) -> dict[str, Any]:
    """What a later version of the dataset is compared with."""
    return {
        "axis": clustering.axis.tolist(),
        "centroids": clustering.centroids.tolist(),
        "silhouettes": {str(k): round(score, 4) for k, score in clustering.silhouettes.items()},
        "cluster_counts": np.bincount(persons.cluster, minlength=len(clustering.centroids)).tolist(),
        "categories": dict(Counter(persons.category)),
    }
