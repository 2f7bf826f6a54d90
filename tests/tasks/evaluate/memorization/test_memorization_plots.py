"""The figures about memorization."""

from pathlib import Path
from typing import Any

from PIL import Image

from tasks.evaluate.memorization.memorization_plots import memorization_curves


def training(*keys: str) -> dict[str, Any]:
    gap = {"auc": 0.6, "low": 0.5, "high": 0.7}
    numbers = {
        "train": [0.1, 0.2], "val": [0.1, 0.2], "gaps": [gap, gap], "distance": {"value": 0.1, "low": 0.05, "high": 0.2}
    }  # fmt: skip
    rows = [{"images": images} | {key: numbers[key] for key in keys} for images in (100, 200, 300)]
    return {"sigmas": [0.05, 0.1], "levels": rows}


def test_curves_have_a_panel_for_every_measured_quantity(tmp_path: Path) -> None:
    heights = []
    for keys in (("train",), ("train", "val", "gaps"), ("train", "val", "gaps", "distance")):
        memorization_curves(training(*keys), tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as image:
            heights.append(image.height)
    assert heights[2] - heights[1] == heights[1] - heights[0] > 200
