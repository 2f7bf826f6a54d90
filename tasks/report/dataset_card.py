"""Stage `dataset_card`: one self-contained page, `reports/dataset.html`: what is in the dataset, and how it came to be.

It is not cached by DVC: besides the dataset it shows how far it has drifted from the version that this workspace had
before (see `dataset.history`), which a fresh clone does not know.
"""

from __future__ import annotations

import base64
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks import paths
from tasks.common import files
from tasks.common.images import encode_png
from tasks.config.data import MANNEQUIN
from tasks.config.params import Curate, Params
from tasks.dataset import dataset_table
from tasks.dataset.clusters import Clusters, name
from tasks.dataset.dataset_table import SPLITS, Gate, Persons
from tasks.extract import parts, poses_table
from tasks.report import dataset_card_plots, dataset_history
from tasks.report.dataset_card_plots import Shown


def run(params: Params, root: Path) -> None:
    """Write the page from data/poses, data/dataset and data/shards; the pictures themselves are read for examples."""
    found, rejects = parts.read_poses(root, params.raw), parts.read_rejects(root, params.raw)
    persons = dataset_table.read(root / paths.DATASET)
    gated = dataset_table.read_gated(root / paths.DATASET)
    summary, statistics = (files.read_json(root / paths.DATASET / f"{name}.json") for name in ("summary", "clusters"))
    axis, centroids = (np.array(statistics[key], np.float32) for key in ("axis", "centroids"))
    clustering = Clusters(axis, centroids, {})
    shown = Shown(parts.SourcePaths(root, params.raw), found, params.curate.margin)
    kinds = dict(zip(found.source, found.source_kind, strict=True))
    group_sheet = dataset_card_plots.group_sheet(persons, gated, shown)
    with tempfile.TemporaryDirectory() as folder:
        share = dataset_card_plots.pose_map(Path(folder) / "map.png", persons, clustering)
        poses = (Path(folder) / "map.png").read_bytes()
    before = dataset_history.previous(root, statistics)
    page = Environment(loader=PackageLoader("tasks.report"), autoescape=True, undefined=StrictUndefined)
    html = page.get_template("dataset.html").render(
        name=", ".join(sorted(params.raw.parts)),
        summary=summary,
        cards=_cards(found, persons, summary),
        provenance=provenance(params, root),
        sources=_sources(found, persons),
        rules=_rules(params.curate, summary["gated"]),
        gated=[
            (reason.replace("_", " "), summary["gated"][reason], _png(sheet))
            for reason, sheet in dataset_card_plots.gated_sheets(gated, shown).items()
        ],
        rejects=[
            (reason.replace("_", " "), sum(row.reason == reason for row in rejects), _png(sheet))
            for reason, sheet in dataset_card_plots.reject_sheets(rejects, kinds, shown).items()
        ],
        groups=None if group_sheet is None else _png(group_sheet),
        splits=_splits(persons),
        pose_map=base64.b64encode(poses).decode(),
        share=f"{share:.0%}",
        clusters=_png(dataset_card_plots.cluster_sheet(persons, clustering, shown)),
        silhouettes=statistics["silhouettes"],
        chosen=len(clustering.centroids),
        drift=None if before is None else _drift(dataset_history.drift(before, statistics, persons)),
        shards=files.read_json(root / paths.SHARDS / paths.SHARD_INDEX)["shards"],
        version=dataset_history.digest(root),
    )
    files.write_bytes(root / paths.DATASET_CARD, html.encode())


def _png(picture: np.ndarray) -> str:
    return base64.b64encode(encode_png(picture)).decode()


def provenance(params: Params, root: Path) -> list[tuple[str, str]]:
    """(where it is said, what is said) about where the pictures come from and under which licence."""
    said = parts.provenance(root, params.raw)
    if params.card.licence is not None:
        said.append(("card.licence in params.yaml", params.card.licence))
    if MANNEQUIN in params.raw.parts.values():
        said.append(("the stage mannequin", f"drawn by this project, seed {params.mannequin.seed}; nobody's picture"))
    return said


def _cards(found: poses_table.Poses, persons: Persons, summary: dict[str, Any]) -> list[tuple[str, Any, str]]:
    poses_only = int((~persons.pictured).sum())
    return [
        ("persons kept", len(persons), f"of {len(found)} found"),
        (
            "with a picture",
            len(persons) - poses_only,
            f"{poses_only} poses without one" if poses_only else "all of them",
        ),
        ("categories", len(summary["categories"]), "as labelled, or pose clusters where there is no label"),
        ("groups", len(set(persons.group)), "persons that share a picture, a video or a name count as one"),
    ]


def _sources(found: poses_table.Poses, persons: Persons) -> list[tuple[str, str, int, int, int]]:
    """Per part and kind of source: files with somebody in them, persons found, persons kept."""
    there, everybody, kept = (
        Counter((source.split("/")[0], kind) for source, kind in rows)
        for rows in (
            set(zip(found.source, found.source_kind, strict=True)),
            zip(found.source, found.source_kind, strict=True),
            zip(persons.source, persons.source_kind, strict=True),
        )
    )
    return [(*row, there[row], everybody[row], kept[row]) for row in sorted(there)]


def _rules(limits: Curate, gated: dict[str, int]) -> list[tuple[str, str, int]]:
    """Per reason: what it is called, the rule, and how many it refused."""
    rules = {
        Gate.FORGOTTEN: "not on the list of those who were taken out",
        Gate.LOW_VISIBILITY: f"mean visibility of the 12 limb joints at least {limits.min_visibility}",
        Gate.PERSON_TOO_SMALL: f"longer side at least {limits.min_pixels:g} pixels",
        Gate.TRUNCATED: f"at most {limits.max_truncation:.0%} of the limb joints outside the picture",
        Gate.BLURRED: f"variance of the Laplacian at least {limits.min_sharpness:g}",
        Gate.TOO_DARK: f"mean brightness at least {limits.min_exposure:g}",
        Gate.TOO_BRIGHT: f"mean brightness at most {limits.max_exposure:g}",
        Gate.IN_ANOTHER_PART: "the same file was not delivered before",
        Gate.REPEATED_POSE: "no better one of the group has the same pose",
        Gate.ABOVE_CAP: f"at most {limits.group_cap} of a group",
    }
    return [(reason.replace("_", " "), rule, gated.get(reason, 0)) for reason, rule in rules.items()]


def _splits(persons: Persons) -> list[tuple[str, list[int]]]:
    """Per category and in all: persons in train, val, test."""
    counts = Counter(zip(persons.category, persons.split, strict=True))
    rows = [(category, [counts[category, split] for split in SPLITS]) for category in sorted(set(persons.category))]
    return [*rows, ("in all", [len(persons.of(split)) for split in SPLITS])]


def _drift(found: dict[str, Any]) -> dict[str, Any]:
    """The drift with its sentence, and per class the shares before and now."""
    tables = {}
    for what, names in (("categories", found["names"]), ("clusters", None)):
        before, now = found["counts"][what]
        names = names or [name(i) for i in range(len(before))]
        shares = [[n / max(sum(side), 1) for n in side] for side in (before, now)]
        tables[what] = [(label, f"{p:.1%}", f"{q:.1%}") for label, p, q in zip(names, *shares, strict=True)]
    sentences = [f"{what}: {found[what]:.3f} ({_spelled(found[what])})" for what in ("categories", "clusters")]
    return {"since": found["since"], "sentence": "; ".join(sentences), "tables": tables}


def _spelled(index: float) -> str:
    return "no drift" if index < 0.1 else "some drift" if index < 0.25 else "another population"
