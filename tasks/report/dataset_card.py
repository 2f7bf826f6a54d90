"""Stage `dataset_card`: one self-contained page, `reports/dataset.html`: what is in the dataset, and how it was made.

DVC does not compare it across machines: it also shows the drift since the version that this workspace had before (see
`dataset_history`), which a fresh clone does not know.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.config.data import MANNEQUIN
from tasks.config.params import Curate, Params
from tasks.dataset import dataset_table
from tasks.dataset.clusters import Clusters
from tasks.dataset.dataset_table import SPLITS, Gate, Persons
from tasks.extract import parts, poses_table
from tasks.report import dataset_card_plots, dataset_history, html
from tasks.report.dataset_card_plots import Tiles
from tasks.report.dataset_history import Drift, Shift
from tasks.report.html import Card, Figure

SIDES = (64, 128, 256)  # pixels of pictures


@dataclass(frozen=True)
class DriftTable:
    """The share of each class before and now, in words."""

    name: str
    rows: list[tuple[str, str, str]]


def run(params: Params, root: Path) -> None:
    """Write the page from data/poses, data/dataset and data/shards. The raw pictures are opened for examples."""
    table, rejects = parts.read_poses(root, params.raw), parts.read_rejects(root, params.raw)
    persons = dataset_table.read(root / paths.DATASET)
    gated = dataset_table.read_gated(root / paths.DATASET)
    summary, statistics = (files.read_json(root / paths.DATASET / f"{name}.json") for name in ("summary", "clusters"))
    axis, centroids = (np.array(statistics[key], np.float32) for key in ("axis", "centroids"))
    clustering = Clusters(axis, centroids, {})
    tiles = Tiles(parts.SourcePaths(root, params.raw), table, params.curate.margin)
    kinds = dict(zip(table.source, table.source_kind, strict=True))
    groups = dataset_card_plots.group_sheet(persons, gated, tiles)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.png"
        share = dataset_card_plots.pose_map(path, persons, clustering)
        pose_map = Figure.read(
            path,
            f"All poses on their two principal axes ({share:.0%} of the variance), turned to face forward, mirror images "
            "laid over each other. Drawn: the central pose of each cluster.",
        )
    before = dataset_history.previous(root, statistics)
    drift = None if before is None else dataset_history.drift(before, statistics, persons)
    text = html.render(
        "dataset.html",
        name=", ".join(sorted(params.raw.parts)),
        summary=summary,
        cards=_cards(table, persons, summary),
        provenance=provenance(params, root),
        sources=_sources(table, persons),
        rules=_rules(params.curate, summary["gated"]),
        gated=[
            Figure.of(sheet, f"{reason.replace('_', ' ')}: {summary['gated'][reason]}")
            for reason, sheet in dataset_card_plots.gated_sheets(gated, tiles).items()
        ],
        rejects=[
            Figure.of(
                sheet,
                f"{reason.replace('_', ' ')}: {sum(row.reason == reason for row in rejects)} files or frames",
            )
            for reason, sheet in dataset_card_plots.reject_sheets(rejects, kinds, tiles).items()
        ],
        groups=None if groups is None else Figure.of(groups, "The largest groups, a row each."),
        near_pairs=[
            Figure.of(sheet, caption)
            for caption, sheet in dataset_card_plots.pair_sheets(
                summary["pairs_near_the_cut"], params.curate.near_duplicate, tiles
            ).items()
        ],
        splits=_splits(persons),
        pose_map=pose_map,
        clusters=Figure.of(
            dataset_card_plots.cluster_sheet(persons, clustering, tiles),
            "A row each: the central pose, then members from the centre outwards with their category.",
        ),
        silhouettes=statistics["silhouettes"],
        chosen=len(clustering.centroids),
        drift=drift,
        drift_sentence=None if drift is None else _drift_sentence(drift),
        drift_tables=[] if drift is None else [_drift_table(*item) for item in _shifts(drift)],
        shards=files.read_json(root / paths.SHARDS / paths.SHARD_INDEX)["shards"],
        version=dataset_history.digest(root),
    )
    files.write_bytes(root / paths.DATASET_CARD, text.encode())


def provenance(params: Params, root: Path) -> list[tuple[str, str]]:
    """(where it is stated, the statement) on the origin of the pictures and their licence."""
    statements = parts.provenance(root, params.raw)
    if params.card.licence is not None:
        statements.append(("card.licence in params.yaml", params.card.licence))
    if MANNEQUIN in params.raw.parts.values():
        statements.append(
            ("the stage mannequin", f"drawn by this project, seed {params.mannequin.seed}; no real person is shown")
        )
    return statements


def _cards(table: poses_table.Poses, persons: Persons, summary: dict[str, Any]) -> list[Card]:
    poses_only = int((~persons.pictured).sum())
    return [
        Card("persons kept", str(len(persons)), f"of {len(table)} found"),
        Card(
            "with a picture",
            str(len(persons) - poses_only),
            f"{poses_only} poses without one" if poses_only else "all of them",
        ),
        Card(
            f"persons of at least {' / '.join(map(str, SIDES))} pixels",
            " / ".join(str(int((persons.crop[:, 2] >= side).sum())) for side in SIDES),
            "side of the square around the person; a larger picture of a smaller person is enlarged",
        ),
        Card("categories", str(len(summary["categories"])), "as labelled, or pose clusters without a label"),
        Card("groups", str(len(set(persons.group))), "persons that share a picture, a video or a name count as one"),
    ]


def _sources(table: poses_table.Poses, persons: Persons) -> list[tuple[str, str, int, int, int]]:
    """Per part and kind of source: files in which somebody was found, persons found, persons kept."""
    files_of, found, kept = (
        Counter((source.split("/")[0], kind) for source, kind in rows)
        for rows in (
            set(zip(table.source, table.source_kind, strict=True)),
            zip(table.source, table.source_kind, strict=True),
            zip(persons.source, persons.source_kind, strict=True),
        )
    )
    return [(*row, files_of[row], found[row], kept[row]) for row in sorted(files_of)]


def _rules(limits: Curate, gated: dict[str, int]) -> list[tuple[str, str, int]]:
    """Per reason: its name, the rule, and how many persons it refused."""
    rules = {
        Gate.FORGOTTEN: "has not opted out",
        Gate.LOW_VISIBILITY: f"mean visibility of the 12 limb joints at least {limits.min_visibility}",
        Gate.PERSON_TOO_SMALL: f"longer side at least {limits.min_pixels:g} pixels",
        Gate.TRUNCATED: f"at most {limits.max_truncation:.0%} of the limb joints outside the picture",
        Gate.BLURRED: f"variance of the Laplacian at least {limits.min_sharpness:g}",
        Gate.TOO_DARK: f"mean brightness at least {limits.min_exposure:g}",
        Gate.TOO_BRIGHT: f"mean brightness at most {limits.max_exposure:g}",
        Gate.IN_ANOTHER_PART: "the same file is in no earlier part",
        Gate.REPEATED_POSE: "no better row of the group has the same pose",
        Gate.ABOVE_CAP: f"at most {limits.group_cap} of a group",
    }
    return [(reason.replace("_", " "), rules[reason], gated.get(reason, 0)) for reason in Gate]


def _splits(persons: Persons) -> list[tuple[str, list[int]]]:
    """Per category and in all: persons in train, val, test."""
    counts = Counter(zip(persons.category, persons.split, strict=True))
    rows = [(category, [counts[category, split] for split in SPLITS]) for category in sorted(set(persons.category))]
    return [*rows, ("in all", [len(persons.of(split)) for split in SPLITS])]


def _shifts(drift: Drift) -> list[tuple[str, Shift]]:
    return [("categories", drift.categories), ("clusters", drift.clusters)]


def _drift_sentence(drift: Drift) -> str:
    indices = [(name, shift.stability_index) for name, shift in _shifts(drift)]
    return "; ".join(f"{name}: {index:.3f} ({_in_words(index)})" for name, index in indices)


def _drift_table(name: str, shift: Shift) -> DriftTable:
    shares = ([n / max(sum(counts), 1) for n in counts] for counts in (shift.before, shift.now))
    return DriftTable(name, [(label, f"{p:.1%}", f"{q:.1%}") for label, p, q in zip(shift.names, *shares, strict=True)])


def _in_words(index: float) -> str:
    return "no drift" if index < 0.1 else "some drift" if index < 0.25 else "another population"
