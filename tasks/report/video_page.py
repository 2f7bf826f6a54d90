"""Stage `video_page`: one self-contained page about clips of pictures and the model that draws them, `reports/video.html`."""

from __future__ import annotations

import base64
from pathlib import Path

from tasks import paths
from tasks.common import files
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset import frames
from tasks.dataset.dataset_table import SPLITS
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.plots import video_plots
from tasks.report import html
from tasks.report.clip_page import curves, in_words, style
from tasks.report.html import Card, Figure

SHOWN, COLUMNS = 12, 4  # clips in a looping picture
STRIPS = 8  # clips frame by frame
SETS = {
    SAMPLES: "Poses and categories of held-out clips.",
    "motions": "Poses of generated motion: no clip of it exists.",
    "apart": "The first conditions again, with frames that know nothing of each other.",
    "heldout": "Real held-out clips.",
}
FIGURES = {
    "found": "frames in which MediaPipe finds a person",
    "joint_error": "distance of its joints from those asked for, torso lengths",
    "joint_error_chance": "the same to the poses of another clip",
    "within_0.2": "joints within 0.2 torso lengths",
    "flicker": "flicker: second difference of pixels over time",
    "change": "change of pixels from frame to frame",
    "frechet_video_distance": "Frechet video distance",
}


def run(params: Params, root: Path) -> None:
    """Read what the other stages measured, draw it, and write the page."""
    quality = files.read_json(root / paths.VIDEO_QUALITY / "video_quality.json")
    metrics: dict[str, float] = quality["metrics"]
    folder = paths.sample_folder(root, paths.VIDEO)
    clips = ShardDataset(root / paths.VIDEO_CLIPS, *SPLITS)
    held_out = ShardDataset(root / paths.VIDEO_CLIPS, "val", "test")
    sets = {split: ShardDataset(folder, split) for split in ShardDataset(folder).splits}
    if len(held_out):
        sets["heldout"] = held_out
    shown = [name for name in SETS if name in sets]
    verdict = quality["verdict"]
    about = sets[SAMPLES].about
    text = html.render(
        "video.html",
        frames=about["frames"],
        rate=about["rate"],
        size=about["size"],
        headlines=[
            Card(
                "joint error, torso lengths", in_words(metrics, f"{SAMPLES}.joint_error"), _real(metrics, "joint_error")
            ),
            Card("flicker", in_words(metrics, f"{SAMPLES}.flicker"), _real(metrics, "flicker")),
            Card("memorization, frames", verdict, "", style(verdict)),
        ],
        sets=[(SETS[name], _looping(sets[name], about["rate"]), _strips(sets[name])) for name in shown],
        names=shown,
        rows=[
            (words, [in_words(metrics, f"{name}.{key}") for name in shown])
            for key, words in FIGURES.items()
            if any(f"{name}.{key}" in metrics for name in shown)
        ],
        absent=sorted(quality["absent"].items()),
        verdict=verdict,
        style=style(verdict),
        sentence=quality["sentence"],
        sources=clips.about["sources"],
        refused=[(reason.replace("_", " "), count) for reason, count in clips.about["refused"].items()],
        curves=curves(root, paths.VIDEO),
        lineage=[
            ("model", paths.model_sha256(root, paths.VIDEO)),
            *((shard, digest) for shard, digest in clips.digests().items()),
        ],
    )
    files.write_bytes(root / paths.VIDEO_PAGE, text.encode())


def _real(metrics: dict[str, float], name: str) -> str:
    return f"held-out clips: {in_words(metrics, f'heldout.{name}')}"


def _looping(data: ShardDataset, rate: float) -> Figure:
    some = data.take(evenly_spaced(len(data), SHOWN))
    names = [str(meta["category"]) for meta in some.metas()]
    sheets = video_plots.beside_poses(frames.read(some), some.clips(), some.about["margin"], COLUMNS, names)
    picture = base64.b64encode(video_plots.looping(sheets, rate)).decode()
    return Figure(picture, "Each clip beside the poses in it.", "webp")


def _strips(data: ShardDataset) -> Figure:
    some = data.take(evenly_spaced(len(data), STRIPS))
    names = [str(meta["category"]) for meta in some.metas()]
    return Figure.of(video_plots.strips(frames.read(some), names), "Some of them, frame by frame.")
