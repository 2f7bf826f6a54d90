"""The figure of a training: a panel for all that was watched, and no other."""

from pathlib import Path
from typing import Any

from PIL import Image

from tasks.evaluate.memorization.memorization_plots import training_watch


def watched(*keys: str) -> dict[str, Any]:
    gap = {"auc": 0.6, "low": 0.5, "high": 0.7}
    found = {
        "train": [0.1, 0.2], "val": [0.1, 0.2], "gaps": [gap, gap], "distance": {"value": 0.1, "low": 0.05, "high": 0.2}
    }  # fmt: skip
    rows = [{"images": images} | {key: found[key] for key in keys} for images in (100, 200, 300)]
    return {"sigmas": [0.05, 0.1], "levels": rows}


def test_a_panel_for_what_was_watched(tmp_path: Path) -> None:
    heights = []
    for keys in (("train",), ("train", "val", "gaps"), ("train", "val", "gaps", "distance")):
        training_watch(watched(*keys), tmp_path / "watch.png")
        with Image.open(tmp_path / "watch.png") as image:
            heights.append(image.height)
    assert heights[2] - heights[1] == heights[1] - heights[0] > 200
