"""Stage `report`: one self-contained page, `reports/report.html`, and the short table of the run, `reports/summary/`.

The page holds its pictures and loads nothing. It says the same whenever it is made from the same inputs: what belongs to
a single execution (times, run ids) is MLflow's.
"""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks import paths
from tasks.common import files
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset import dataset_table
from tasks.dataset.shards import ShardDataset
from tasks.dataset.source_pictures import pictures
from tasks.evaluate.memorization.memorization_plots import training_watch
from tasks.extract import parts
from tasks.paths import MODELS
from tasks.plots import drawing
from tasks.report import report_text
from tasks.report.dataset_card_plots import Shown, gated_sheets, reject_sheets

SHOWN = 24  # kept persons on the contact sheet
TILE = 128  # pixels


def run(params: Params, root: Path) -> None:
    """Gather what the other stages found, draw it, and write the page, the table and their pictures."""
    found = report_text.gather(params, root)
    with files.new_folder(root / paths.SUMMARY) as folder:
        pictures = {
            "kept": _kept(params, root, folder),
            "rejected": _rejected(params, root, folder),
            "curves": [figure for model in MODELS for figure in _curves(root, folder, model)],
            "samples": [
                _figure(
                    paths.sample_folder(root, "poses") / paths.GRID, "New poses, with the category that was asked for."
                ),
                _figure(
                    paths.sample_folder(root, "pictures") / paths.GRID,
                    "New pictures: each row shows one new pose and what the model makes of it, with different noise.",
                ),
            ],
            "neighbours": _neighbours(root),
            "membership_inference": _figures(
                root / paths.MEMBERSHIP_INFERENCE,
                "How well training and held-out examples are told apart by their loss, per noise level.",
            ),
            "model_comparison": _figures(
                root / paths.PROMOTE,
                "Challenger minus champion: the difference of their distances to held-out data, in all and for each "
                "category, with 95 % intervals. Left of the line the challenger is nearer.",
            ),
            "pose_accuracy": _figures(
                root / paths.POSE_ACCURACY,
                "Generated pictures, the pose that was asked for and the one that is read in them.",
            ),
        }
        page = Environment(loader=PackageLoader("tasks.report"), autoescape=True, undefined=StrictUndefined)
        html = page.get_template("report.html").render(**report_text.sections(params, root, found), **pictures)
        files.write_json(folder / "summary.json", report_text.summary(found))
    files.write_bytes(root / paths.REPORT, html.encode())


def _figure(path: Path, caption: str) -> dict[str, str]:
    return {"data": base64.b64encode(path.read_bytes()).decode(), "caption": caption}


def _figures(folder: Path, caption: str) -> list[dict[str, str]]:
    return [_figure(path, caption) for path in sorted(folder.glob("*.png"))]


def _drawn(path: Path, picture: np.ndarray, caption: str) -> dict[str, str]:
    drawing.save_png(path, picture)
    return _figure(path, caption)


def _kept(params: Params, root: Path, folder: Path) -> list[dict[str, str]]:
    """Kept persons: the picture as it came with the landmarks found on it, and the crop that the models see."""
    found = parts.read_poses(root, params.raw)
    persons = dataset_table.read(root / paths.DATASET)
    row = {key: i for i, key in enumerate(found.key)}
    train = ShardDataset(root / paths.SHARDS, "train").pictured()
    tiles, captions = [], []
    for i in evenly_spaced(len(persons), SHOWN):
        if persons.pictured[i]:
            place = persons.source[i], persons.source_kind[i], int(persons.frame[i])
            picture = next(pictures(parts.Places(root, params.raw), [place]))
            j = row[persons.key[i]]
            points = np.concatenate([found.pixels[j], found.landmarks[j, :, 2:3]], axis=1)
            tiles.append(drawing.fit(drawing.draw_landmarks(picture, points), TILE))
        else:
            tiles.append(drawing.draw_pose(persons.pose[i], TILE))
        captions.append(persons.category[i])
    sheet = drawing.sheet(tiles, 8, captions)
    kept = [_drawn(folder / "kept.png", sheet, "Some of those kept, with the landmarks that were read.")]
    crops = [train.picture(i) for i in evenly_spaced(len(train), SHOWN)]
    if crops:
        caption = "Some of the square crops in the training shards."
        kept.append(_drawn(folder / "crops.png", drawing.sheet(crops, 12), caption))
    return kept


def _rejected(params: Params, root: Path, folder: Path) -> list[dict[str, str]]:
    """A contact sheet for each reason; files that no decoder opens are grey tiles."""
    found, rejects = parts.read_poses(root, params.raw), parts.read_rejects(root, params.raw)
    gated = dataset_table.read_gated(root / paths.DATASET)
    shown = Shown(parts.Places(root, params.raw), found, params.curate.margin)
    kinds = dict(zip(found.source, found.source_kind, strict=True))
    counts = Counter(str(row.reason) for row in rejects) + Counter(str(row.reason) for row in gated)
    sheets = {**reject_sheets(rejects, kinds, shown), **gated_sheets(gated, shown)}
    return [
        _drawn(folder / f"rejected-{reason}.png", sheet, f"{reason.replace('_', ' ')}: {counts[reason]}")
        for reason, sheet in sorted(sheets.items())
    ]


def _curves(root: Path, folder: Path, model: str) -> list[dict[str, str]]:
    training = files.read_json(paths.model_folder(root, model) / "training.json")
    images, loss = zip(*training["loss"], strict=True)
    drawing.curves(folder / f"loss-{model}.png", {"training loss": (images, loss)}, "images seen", "loss", "y")
    training_watch(training, folder / f"watch-{model}.png")
    return [
        _figure(folder / f"loss-{model}.png", f"{model}: training loss against images seen."),
        _figure(
            folder / f"watch-{model}.png",
            f"{model}: denoising error on training and held-out data, same noise, while the model was trained. Memorization "
            "begins where the held-out error turns upwards.",
        ),
    ]


def _neighbours(root: Path) -> list[dict[str, str]]:
    captions = {
        "closest": "the samples nearest to a training example, as far as they are suspicious: sample, nearest, the two "
        "together, second nearest.",
        "ratios": "how near samples come to training examples (nearest over second nearest), beside held-out data.",
    }
    figures = []
    for path in sorted((root / paths.MEMORIZATION).glob("*.png")):
        what, _, kind = path.stem.rpartition("_")
        figures.append(_figure(path, f"{what.replace('_', ' ')}: {captions.get(kind, kind)}"))
    return figures
