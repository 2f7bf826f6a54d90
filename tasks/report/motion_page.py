"""Stage `motion_page`: one self-contained page about clips and the motion model, `reports/motion.html`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.config.params import Params
from tasks.dataset.dataset_table import SPLITS
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.plots import motion_plots
from tasks.report import html
from tasks.report.clip_page import curves, in_words, style
from tasks.report.html import Card, Figure

COLUMNS, TILE = 5, 150  # of looping pictures
SHOWN = 15  # categories in a figure
CLOSEST = 8  # rows of the copy test
CONTROL = {
    "followed": "Along the path of a held-out clip, with its category.",
    "continued": "The first half is from a held-out clip, the second half is new.",
    "connected": "The first and the last pose are from a held-out clip, the rest is new.",
    "held": "Hips, legs and feet are those of a held-out clip, the rest of the body is new.",
    "looped": "The end continues in the beginning.",
    "long": "Longer than a clip: three windows that overlap.",
}
DISTANCES = {
    "frechet_motion_distance": "Frechet distance of trajectories, bias corrected",
    "frechet_motion_distance_floor": "the same of training clips",
    "frechet_motion_distance_frames": "the same of frames drawn independently of each other",
    "frechet_motion_distance_joints": "the same of joints independent of each other",
    "kernel_motion_distance": "Kernel distance of trajectories",
    "kernel_motion_distance_floor": "the same of training clips",
}
PLAUSIBILITY = {
    "foot_skating": "foot skating, torso lengths a second",
    "jitter": "jitter, torso lengths a second cubed",
    "bone_change": "change of bone lengths, share",
}


def run(params: Params, root: Path) -> None:
    """Read what the other stages measured, draw it, and write the page."""
    quality = files.read_json(root / paths.MOTION_QUALITY / "motion_quality.json")
    metrics: dict[str, float] = quality["metrics"]
    folder = paths.sample_folder(root, paths.MOTION)
    samples, clips = ShardDataset(folder, SAMPLES), ShardDataset(root / paths.CLIPS, *SPLITS)
    rate = float(samples.about["rate"])
    verdict = quality["verdict"]
    text = html.render(
        "motion.html",
        frames=samples.about["frames"],
        rate=rate,
        headlines=_cards(metrics, verdict),
        samples=_samples(samples, rate),
        control=_control(folder, samples.splits, rate),
        plausibility=[
            (words, *(in_words(metrics, f"{name}{of}") for of in ("", "_locked", "_heldout")))
            for name, words in PLAUSIBILITY.items()
        ],
        metrics=_metrics(metrics),
        absent=sorted(quality["absent"].items()),
        verdict=verdict,
        style=style(verdict),
        sentence=quality["sentence"],
        closest=quality["closest"][:CLOSEST],
        sources=clips.about["sources"],
        splits=_splits(root),
        refused=[(reason.replace("_", " "), count) for reason, count in clips.about["refused"].items()],
        real=[_real(root, rate)],
        curves=curves(root, paths.MOTION),
        lineage=[
            ("model", paths.model_sha256(root, paths.MOTION)),
            *((shard, digest) for shard, digest in clips.digests().items()),
        ],
    )
    files.write_bytes(root / paths.MOTION_PAGE, text.encode())


def _metrics(metrics: dict[str, float]) -> list[tuple[str, str]]:
    rows = [(words, in_words(metrics, name, interval=True)) for name, words in DISTANCES.items() if name in metrics]
    rows += [(name, in_words(metrics, name)) for name in sorted(metrics) if name.startswith("motion.")]
    if "seam" in metrics:
        rows.append(("acceleration at the seams of long motion, over that elsewhere", in_words(metrics, "seam")))
    return rows


def _cards(metrics: dict[str, float], verdict: str) -> list[Card]:
    reference = "frechet_motion_distance_frames"
    note = f"frames independent: {in_words(metrics, reference)}" if reference in metrics else ""
    return [
        Card("Frechet motion distance", in_words(metrics, "frechet_motion_distance"), note),
        *(
            Card(
                name.replace("_", " "),
                in_words(metrics, name),
                f"held-out clips: {in_words(metrics, f'{name}_heldout')}",
            )
            for name in PLAUSIBILITY
        ),
        Card("memorization, motion", verdict, "", style(verdict)),
    ]


def _looping(clips: np.ndarray, rate: float, caption: str, names: Sequence[str]) -> Figure:
    picture = motion_plots.looping(clips, rate, COLUMNS, names, TILE)
    return Figure(base64.b64encode(picture).decode(), caption, "webp")


def _samples(samples: ShardDataset, rate: float) -> list[Figure]:
    """A looping picture with one sample of each category, and strips of others."""
    names = [str(meta["category"]) for meta in samples.metas()]
    rows = [[i for i, name in enumerate(names) if name == category] for category in sorted(set(names))[:SHOWN]]
    clips = samples.clips()
    first = [own[0] for own in rows]
    again = [own[1 % len(own)] for own in rows]
    return [
        _looping(clips[first], rate, "One sample of each category.", [names[i] for i in first]),
        Figure.of(
            motion_plots.strips(clips[again], [names[i] for i in again]),
            "Another one of each category, frame by frame.",
        ),
    ]


def _control(folder: Path, splits: Sequence[str], rate: float) -> list[Figure]:
    figures = []
    for split, caption in CONTROL.items():
        if split in splits:
            drawn = ShardDataset(folder, split)
            names = [str(meta["category"]) for meta in drawn.metas()]
            clips = drawn.clips()
            shown = clips[:, :-1] if split == "looped" else clips  # the last frame is the first one again
            figures.append(_looping(shown, rate, caption, names))
            if split in ("continued", "connected"):
                figures.append(Figure.of(motion_plots.strips(clips, names), "The same, frame by frame."))
    return figures


def _real(root: Path, rate: float) -> Figure:
    clips = ShardDataset(root / paths.CLIPS, "train")
    names = [str(meta["category"]) for meta in clips.metas()]
    rows = [names.index(name) for name in sorted(set(names))[:SHOWN]]
    return _looping(clips.take(rows).clips(), rate, "A training clip of each category.", [names[i] for i in rows])


def _splits(root: Path) -> list[tuple[str, int, int]]:
    """Split, number of clips, number of groups."""
    rows = []
    for split in SPLITS:
        data = ShardDataset(root / paths.CLIPS, split)
        rows.append((split, len(data), len({meta["group"] for meta in data.metas()})))
    return rows
