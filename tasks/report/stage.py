"""Stage `report`: one self-contained page, `reports/report.html`, and the figures of the run in `reports/summary/`:

    summary.json   the table that a run ends with, and all metrics by name
    metrics.json   the key figures, for `dvc metrics` and `dvc exp show`
    *.png          the figures that this stage draws

The same inputs give the same page. What belongs to a single execution (times, run ids) is recorded by MLflow.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset import dataset_table
from tasks.dataset.shards import ShardDataset
from tasks.dataset.source_pictures import pictures
from tasks.evaluate.memorization.memorization_plots import memorization_curves
from tasks.extract import parts
from tasks.plots import drawing
from tasks.registry import pipeline_run
from tasks.report import generated, html, page, results
from tasks.report.dataset_card_plots import Tiles, gated_sheets, reject_sheets
from tasks.report.html import Figure

SHOWN = 24  # kept persons on the contact sheet
TILE = 128  # pixels


def run(params: Params, root: Path) -> None:
    """Read what the other stages measured, draw it, and write the page and the summary."""
    measured = results.read(params, root)
    summary = results.summarise(measured)
    with files.new_folder(root / paths.SUMMARY) as folder:
        opening = generated.opening(params, root, folder)
        figures = {
            "opening": [] if opening is None else [opening],
            "kept": _kept(params, root, folder),
            "rejected": _rejected(params, root, folder),
            "curves": [
                figure for model in paths.trained_models(root) for figure in _curves(params, root, folder, model)
            ],
            "samples": [
                *generated.by_category(root, folder),
                Figure.read(paths.sample_folder(root, "poses") / paths.GRID, "New poses, with the category asked for."),
                Figure.read(
                    paths.sample_folder(root, "pictures") / paths.GRID,
                    "New pictures: each row shows one new pose and pictures of it from different noise.",
                ),
            ],
            "neighbours": _neighbours(root),
            "membership_inference": _figures(
                root / paths.MEMBERSHIP_INFERENCE,
                "How well the loss tells training examples from held-out ones, per noise level.",
            ),
            "model_comparison": _figures(
                root / paths.PROMOTE,
                "Challenger minus champion: the difference of their distances to held-out data, in all and for each "
                "category, with 95 % intervals. Left of the line the challenger is nearer.",
            ),
            "codec_quality": [
                *_figures(
                    root / paths.CODEC_QUALITY,
                    "Held-out pictures and what the codec makes of them: the picture model can do no better.",
                    "codec.png",
                ),
                *_figures(
                    root / paths.CODEC_QUALITY,
                    "Held-out pictures that were reduced, and what the upscaler makes of them.",
                    "upscaler.png",
                ),
            ],
            "recognition": _figures(
                root / paths.RECOGNITION,
                "Held-out people: their label, and what they were recognised as.",
            ),
            "pose_accuracy": _figures(
                root / paths.POSE_ACCURACY,
                "Generated pictures, the pose that was asked for and the pose that is read in them.",
            ),
        }
        text = html.render("report.html", page=page.make(params, root, measured), figures=figures)
        files.write_json(folder / "summary.json", asdict(summary))
        files.write_json(folder / "metrics.json", results.key_figures(measured, summary.metrics))
    files.write_bytes(root / paths.REPORT, text.encode())
    pipeline_run.record_experiment(params, root)


def _figures(folder: Path, caption: str, names: str = "*.png") -> list[Figure]:
    return [Figure.read(path, caption) for path in sorted(folder.glob(names))]


def _drawn(path: Path, picture: np.ndarray, caption: str) -> Figure:
    drawing.save_png(path, picture)
    return Figure.read(path, caption)


def _kept(params: Params, root: Path, folder: Path) -> list[Figure]:
    """Kept persons: the original picture with the landmarks that were read, and the crops that the models see."""
    table = parts.read_poses(root, params.raw)
    persons = dataset_table.read(root / paths.DATASET)
    row = {key: i for i, key in enumerate(table.key)}
    train = ShardDataset(root / paths.SHARDS, "train").pictured()
    tiles, captions = [], []
    for i in evenly_spaced(len(persons), SHOWN):
        if persons.pictured[i]:
            place = persons.source[i], persons.source_kind[i], int(persons.frame[i])
            picture = next(pictures(parts.SourcePaths(root, params.raw), [place]))
            j = row[persons.key[i]]
            points = np.concatenate([table.pixels[j], table.landmarks[j, :, 2:3]], axis=1)
            tiles.append(drawing.fit(drawing.draw_landmarks(picture, points), TILE))
        else:
            tiles.append(drawing.draw_pose(persons.pose[i], TILE))
        captions.append(persons.category[i])
    sheet = drawing.sheet(tiles, 8, captions)
    kept = [_drawn(folder / "kept.png", sheet, "Some of the kept persons, with the landmarks that were read.")]
    crops = [drawing.fit(train.picture(i), TILE) for i in evenly_spaced(len(train), SHOWN)]
    if crops:
        caption = "Some of the square crops in the training shards."
        kept.append(_drawn(folder / "crops.png", drawing.sheet(crops, 8), caption))
    return kept


def _rejected(params: Params, root: Path, folder: Path) -> list[Figure]:
    """A contact sheet for each reason. Files that cannot be read are grey tiles."""
    table, rejects = parts.read_poses(root, params.raw), parts.read_rejects(root, params.raw)
    gated = dataset_table.read_gated(root / paths.DATASET)
    tiles = Tiles(parts.SourcePaths(root, params.raw), table, params.curate.margin)
    kinds = dict(zip(table.source, table.source_kind, strict=True))
    counts = Counter(str(row.reason) for row in rejects) + Counter(str(row.reason) for row in gated)
    sheets = {**reject_sheets(rejects, kinds, tiles), **gated_sheets(gated, tiles)}
    return [
        _drawn(folder / f"rejected-{reason}.png", sheet, f"{reason.replace('_', ' ')}: {counts[reason]}")
        for reason, sheet in sorted(sheets.items())
    ]


def _curves(params: Params, root: Path, folder: Path, model: str) -> list[Figure]:
    training = files.read_json(paths.model_folder(root, params.sampled(model)) / "training.json")
    images, loss = zip(*training["loss"], strict=True)
    drawing.curves(folder / f"loss-{model}.png", {"training loss": (images, loss)}, "images seen", "loss", "y")
    memorization_curves(training, folder / f"watch-{model}.png")
    return [
        Figure.read(folder / f"loss-{model}.png", f"{model}: training loss against images seen."),
        Figure.read(
            folder / f"watch-{model}.png",
            f"{model}: denoising error on training and held-out data during training, with the same noise. Memorization "
            "begins where the held-out error rises.",
        ),
    ]


def _neighbours(root: Path) -> list[Figure]:
    captions = {
        "closest": "the most suspicious samples: sample, nearest training example, the two together, second nearest.",
        "ratios": "how near samples come to training examples (distance to the nearest over the second nearest), beside "
        "held-out data.",
    }
    figures: list[Figure] = []
    for path in sorted((root / paths.MEMORIZATION).glob("*.png")):
        what, _, kind = path.stem.rpartition("_")
        figures.append(Figure.read(path, f"{what.replace('_', ' ')}: {captions.get(kind, kind)}"))
    return figures
