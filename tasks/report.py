"""Stage `report`: one self-contained page, `reports/report.html`, and the short table of the run, `reports/summary/`.

The page holds its pictures and loads nothing. It says the same whenever it is made from the same inputs: what belongs to
a single execution (times, run ids) is MLflow's.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from tasks import artifacts, drawing, files, report_text
from tasks.artifacts import MODELS
from tasks.choose import evenly
from tasks.dataset import dataset_table
from tasks.dataset.shards import ShardDataset
from tasks.extraction import poses_table
from tasks.extraction.ingest import Refusal, open_picture
from tasks.params import Params

SHOWN = 24  # kept persons on the contact sheet
REFUSED = 8  # refused ones for each reason
TILE = 128  # pixels


def run(params: Params, root: Path) -> None:
    """Gather what the other stages found, draw it, and write the page, the table and their pictures."""
    found = report_text.gather(params, root)
    with files.new_folder(root / "reports/summary") as folder:
        pictures = {
            "kept": _kept(params, root, folder),
            "rejected": _rejected(params, root, folder),
            "curves": [figure for model in MODELS for figure in _curves(root, folder, model)],
            "samples": [
                _figure(root / "samples/poses/grid.png", "New poses, with the category that was asked for."),
                _figure(
                    root / "samples/pictures/grid.png",
                    "New pictures, each beside the new pose that it was asked to show.",
                ),
            ],
            "neighbours": _neighbours(root),
            "loss_gap": _figures(
                root / "reports/loss_gap",
                "How well training and held-out examples are told apart by their loss, per noise level.",
            ),
            "adherence": _figures(
                root / "reports/adherence",
                "Generated pictures, the pose that was asked for and the one that is read in them.",
            ),
        }
        page = Environment(loader=PackageLoader("tasks"), autoescape=True, undefined=StrictUndefined)
        html = page.get_template("report.html").render(**report_text.sections(params, root, found), **pictures)
        files.write_json(folder / "summary.json", report_text.summary(found))
    files.write_bytes(root / "reports/report.html", html.encode())


def _figure(path: Path, caption: str) -> dict[str, str]:
    return {"data": base64.b64encode(path.read_bytes()).decode(), "caption": caption}


def _figures(folder: Path, caption: str) -> list[dict[str, str]]:
    return [_figure(path, caption) for path in sorted(folder.glob("*.png"))]


def _drawn(path: Path, picture: np.ndarray, caption: str) -> dict[str, str]:
    drawing.save_png(path, picture)
    return _figure(path, caption)


def _kept(params: Params, root: Path, folder: Path) -> list[dict[str, str]]:
    """Kept persons: the picture as it came with the landmarks found on it, and the crop that the models see."""
    found = poses_table.read_poses(root / "data/poses" / params.raw.part)
    persons = dataset_table.read(root / "data/dataset")
    row = {key: i for i, key in enumerate(found.key)}
    train = ShardDataset(root / "data/shards", "train")
    tiles, captions = [], []
    for i in evenly(len(persons), SHOWN):
        picture = open_picture(root / params.raw.folder / persons.source[i], params.extract.min_side)
        j = row[persons.key[i]]
        points = np.concatenate([found.pixels[j], found.landmarks[j, :, 2:3]], axis=1)
        tiles.append(drawing.fit(drawing.draw_landmarks(picture, points), TILE))
        captions.append(persons.category[i])
    sheet = drawing.sheet(tiles, 8, captions)
    crops = [train.picture(i) for i in evenly(len(train), SHOWN)]
    return [
        _drawn(folder / "kept.png", sheet, "Some of those kept, with the landmarks that were read."),
        _drawn(folder / "crops.png", drawing.sheet(crops, 12), "Some of the square crops in the training shards."),
    ]


def _rejected(params: Params, root: Path, folder: Path) -> list[dict[str, str]]:
    """A contact sheet for each reason; files that no decoder opens are named instead of shown."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for reject in poses_table.read_rejects(root / "data/poses" / params.raw.part):
        by_reason[str(reject.reason)].append(reject.source)
    for person in dataset_table.read_gated(root / "data/dataset"):
        by_reason[str(person.reason)].append(person.source)
    out = []
    for reason, sources in sorted(by_reason.items()):
        tiles, captions = [], []
        for i in evenly(len(sources), REFUSED):
            try:
                picture = open_picture(root / params.raw.folder / sources[i], params.extract.min_side)
            except Refusal:
                picture = np.full((TILE, TILE, 3), 235, np.uint8)
            tiles.append(drawing.fit(picture, TILE))
            captions.append(Path(sources[i]).name)
        caption = f"{reason.replace('_', ' ')}: {len(sources)}"
        out.append(_drawn(folder / f"rejected-{reason}.png", drawing.sheet(tiles, 8, captions), caption))
    return out


def _curves(root: Path, folder: Path, model: str) -> list[dict[str, str]]:
    training = files.read_json(artifacts.folder(root, model) / "training.json")
    images, loss = zip(*training["loss"], strict=True)
    drawing.curves(folder / f"loss-{model}.png", {"training loss": (images, loss)}, "images seen", "loss", "y")
    last = training["levels"][-1]
    levels = {split: (training["sigmas"], last[split]) for split in ("train", "val") if split in last}
    drawing.curves(folder / f"levels-{model}.png", levels, "noise level sigma", "denoising error", "xy")
    return [
        _figure(folder / f"loss-{model}.png", f"{model}: training loss against images seen."),
        _figure(
            folder / f"levels-{model}.png",
            f"{model}: error of the denoised example on training and held-out data, same noise. A gap at low noise is the "
            "first sign of memorization.",
        ),
    ]


def _neighbours(root: Path) -> list[dict[str, str]]:
    captions = {
        "closest": "the samples nearest to a training example, as far as they are suspicious: sample, nearest, the two "
        "together, second nearest.",
        "ratios": "how near samples come to training examples (nearest over second nearest), beside held-out data.",
    }
    figures = []
    for path in sorted((root / "reports/memorization").glob("*.png")):
        what, _, kind = path.stem.rpartition("_")
        figures.append(_figure(path, f"{what.replace('_', ' ')}: {captions.get(kind, kind)}"))
    return figures
