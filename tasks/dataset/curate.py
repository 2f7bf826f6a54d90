"""Stage `curate`: which of the persons found are kept, which belong together, and which split each is in.

Reads `data/poses/` and the tombstones, writes `data/dataset/` (see `dataset_table`) with

    summary.json      rows in and out by reason, groups, splits, distances, warnings
    clusters.json     the pose clusters: what the next version's drift is measured against
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.common.skeleton import normalise
from tasks.config.params import Curate, Params
from tasks.dataset import clusters, coverage, dataset_table, opt_outs
from tasks.dataset.clusters import Clusters
from tasks.dataset.crop import square
from tasks.dataset.dataset_table import Gate, Gated, Persons
from tasks.dataset.gate import gate
from tasks.dataset.groups import group, thin
from tasks.dataset.split_assignment import assign
from tasks.extract import parts
from tasks.extract.poses_table import Poses

Refused = dict[int, tuple[Gate, str]]  # row -> reason, detail


def run(params: Params, root: Path) -> None:
    """Gate, group, thin, cluster, split; raises DataError if nobody is kept."""
    choice = params.curate
    found = parts.read_poses(root, params.raw)
    if not len(found):
        raise DataError(_nobody(params, root))
    refused = _refused(found, choice, root)
    passed = [i for i in range(len(found)) if i not in refused]
    if not passed:
        reasons = ", ".join(
            f"{reason} {n}" for reason, n in Counter(r.value for r, _ in refused.values()).most_common()
        )
        raise DataError(f"None of the {len(found)} persons found is kept ({reasons}): see `curate` in params.yaml.")
    poses = normalise(found.world[passed])
    groups, joins = group(
        [found.key[i] for i in passed], [[found.source[i] for i in passed]], found.fingerprint[passed], poses
    )
    refused |= _thinned(found, passed, groups, poses, choice.group_cap)
    stay = [at for at, i in enumerate(passed) if i not in refused]
    kept, groups_kept, poses_kept = [passed[at] for at in stay], [groups[at] for at in stay], poses[stay]
    clustering = clusters.fit(poses_kept)
    persons, moved = _persons(found, kept, groups_kept, poses_kept, clustering, choice)
    name = dict(zip(passed, groups, strict=True))
    gated = [
        Gated(found.key[i], found.source[i], int(found.frame[i]), found.category[i], name.get(i, ""), *refused[i])
        for i in sorted(refused)
    ]
    summary: dict[str, Any] = {
        "persons_found": len(found),
        "persons_kept": len(persons),
        "gated": dict(Counter(row.reason for row in gated)),
        "splits": {split: len(persons.of(split)) for split in dataset_table.SPLITS},
        "categories": dict(Counter(persons.category)),
        "groups": len(set(groups)),
        "largest_group": max(Counter(groups).values()),
        "groups_above_one": sum(size > 1 for size in Counter(groups).values()),
        "joins": joins,
        "moved_groups": moved,
        "distances": coverage.distances(persons),
        "warnings": coverage.warnings(persons),
    }
    with files.new_folder(root / paths.DATASET) as folder:
        dataset_table.write(folder, persons, gated)
        files.write_json(folder / "summary.json", summary)
        files.write_json(folder / "clusters.json", _statistics(persons, clustering))
    splits = ", ".join(f"{n} {split}" for split, n in summary["splits"].items())
    print(f"{len(persons)} of {len(found)} persons kept: {splits}")
    for sentence in summary["warnings"]:
        print(sentence)


def _nobody(params: Params, root: Path) -> str:
    looked = parts.summary(root, params.raw)
    reasons = ", ".join(f"{reason} {n}" for reason, n in Counter(looked["rejects"]).most_common())
    where = ", ".join(params.raw.parts.values())
    return (
        f"Nobody was found in the {looked['files']} files of {where} ({reasons}); each refusal with its reason is in "
        f"{root / paths.POSES}."
    )


def _refused(found: Poses, choice: Curate, root: Path) -> Refused:
    """Who is out before anybody is compared with anybody: forgotten, below the gate, delivered before."""
    refused: Refused = {
        i: (Gate.FORGOTTEN, f"as {key}") for i, key in opt_outs.match(found, opt_outs.read(root)).items()
    }
    for i, why in gate(found, choice).items():
        refused.setdefault(i, why)
    first: dict[str, int] = {}
    for i, key in enumerate(found.key):
        if i not in refused and first.setdefault(key, i) != i:
            refused[i] = Gate.IN_ANOTHER_PART, f"the same bytes as {found.source[first[key]]}"
    return refused


def _thinned(found: Poses, passed: list[int], groups: list[str], poses: np.ndarray, cap: int) -> Refused:
    """Who is left out of a group: those who repeat a pose and those above the cap; larger persons are preferred."""
    best = np.lexsort((np.array([found.key[i] for i in passed]), -found.person_pixels[passed]))
    rank = np.empty(len(passed), np.int64)
    rank[best] = np.arange(len(passed))
    repeats, above = thin(groups, poses, rank, cap)
    out: Refused = {
        passed[at]: (Gate.REPEATED_POSE, "pose kept already, in a better row of its group") for at in repeats
    }
    return out | {passed[at]: (Gate.ABOVE_CAP, f"at most {cap}, of a group") for at in above}


def _persons(
    found: Poses, kept: list[int], groups: list[str], poses: np.ndarray, clustering: Clusters, choice: Curate
) -> tuple[Persons, list[str]]:
    """The table of those kept, and the groups that are in another split than their hash alone says."""
    split, moved = assign(groups, choice.seed, choice.val, choice.test)
    cluster = clustering.assign(poses)
    seen, pixels = found.pictured, found.pixels
    persons = Persons(
        key=[found.key[i] for i in kept],
        source=[found.source[i] for i in kept],
        source_kind=[found.source_kind[i] for i in kept],
        category=[found.category[i] or clusters.name(c) for i, c in zip(kept, cluster.tolist(), strict=True)],
        group=groups,
        split=[split[name] for name in groups],
        frame=found.frame[kept],
        cluster=cluster,
        crop=np.array([square(pixels[i], choice.margin) if seen[i] else (0, 0, 0) for i in kept], np.int32),
        pose=poses,
    )
    return persons, moved


def _statistics(persons: Persons, clustering: Clusters) -> dict[str, Any]:
    """What a later version is compared with."""
    return {
        "axis": clustering.axis.tolist(),
        "centroids": clustering.centroids.tolist(),
        "silhouettes": {str(k): round(score, 4) for k, score in clustering.silhouettes.items()},
        "cluster_counts": np.bincount(persons.cluster, minlength=len(clustering.centroids)).tolist(),
        "categories": dict(Counter(persons.category)),
    }
