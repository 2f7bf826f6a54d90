"""Stage `clips_card`: one self-contained page, `reports/clips.html`: the data card of the clips of motion."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files, motion
from tasks.config.params import Params
from tasks.dataset.clips import ANIMATION
from tasks.dataset.dataset_table import SPLITS
from tasks.dataset.shards import ShardDataset
from tasks.plots import motion_plots
from tasks.report import dataset_card, html
from tasks.report.html import Card, Figure

SHOWN = 40  # categories in the picture


def run(params: Params, root: Path) -> None:
    """Write the page from data/clips."""
    clips = ShardDataset(root / paths.CLIPS, *SPLITS)
    sources: list[dict[str, Any]] = clips.about["sources"]
    metas = list(clips.metas())
    names = [str(meta["category"]) for meta in metas]
    rows = [names.index(name) for name in sorted(set(names))[:SHOWN]]
    strips = motion_plots.strips(clips.take(rows).clips(), [names[i] for i in rows])
    text = html.render(
        "clips.html",
        frames=clips.about["frames"],
        rate=float(clips.about["rate"]),
        cards=_cards(sources, clips.about["rate"]),
        provenance=_provenance(params, root, sources),
        rules=params.motion.clips.model_dump(),
        sources=sources,
        splits=_splits(metas),
        paths=_paths(metas, clips.clips(), float(clips.about["rate"])),
        refused=[(reason.replace("_", " "), count) for reason, count in clips.about["refused"].items()],
        pictures=[Figure.of(strips, "A clip of each category.")],
        shards=sorted(clips.digests().items()),
    )
    (root / paths.CLIPS_CARD).parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(root / paths.CLIPS_CARD, text.encode())


def _cards(sources: list[dict[str, Any]], rate: float) -> list[Card]:
    total = {key: sum(row[key] for row in sources) for key in ("clips", "sources", "seconds")}
    kinds: Counter[str] = Counter()
    for row in sources:
        kinds[row["kind"]] += row["seconds"]
    return [
        Card(
            "seconds of motion", f"{total['seconds']:.0f}", ", ".join(f"{kind}: {n:.0f}" for kind, n in kinds.items())
        ),
        Card("clips", str(total["clips"]), f"at {rate:g} frames a second; clips of a source may overlap"),
        Card("sources", str(total["sources"]), "a file or an animation; all clips of a source are in one split"),
        Card("categories", str(len({row["category"] for row in sources})), "as labelled"),
    ]


def _provenance(params: Params, root: Path, sources: list[dict[str, Any]]) -> list[tuple[str, str]]:
    kinds = {row["kind"] for row in sources}
    statements = dataset_card.provenance(params, root) if kinds - {ANIMATION} else []
    if ANIMATION in kinds:
        seed = params.motion.animation.seed
        statements.append(("the stage animate", f"animated by this project, seed {seed}; no real person is shown"))
    return statements


def _splits(metas: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Split, number of clips, number of groups."""
    return [
        (split, sum(meta["split"] == split for meta in metas), len({m["group"] for m in metas if m["split"] == split}))
        for split in SPLITS
    ]


def _paths(metas: list[dict[str, Any]], clips: np.ndarray, rate: float) -> list[tuple[str, int, int, str]]:
    """Kind, clips, clips whose path is known, and the median speed of their hips in torso lengths per second."""
    rows = []
    for kind in sorted({str(meta["kind"]) for meta in metas}):
        own = np.array([meta["kind"] == kind for meta in metas])
        known = own & np.array([bool(meta["path"]) for meta in metas])
        speed = "-"
        if known.any():
            steps = np.diff(motion.middle_of_hips(clips[known].astype(np.float64)), axis=1)
            speed = f"{np.median(np.linalg.norm(steps, axis=-1).mean(axis=1)) * rate:.2g}"
        rows.append((kind, int(own.sum()), int(known.sum()), speed))
    return rows
