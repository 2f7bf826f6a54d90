"""What the pages about motion and about clips of pictures share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.evaluate.memorization.memorization_plots import memorization_curves
from tasks.plots import drawing
from tasks.report.html import Figure


def style(verdict: str) -> str:
    """The CSS class of a verdict."""
    return verdict if verdict in ("CLEAN", "COPIES") else "unsure"


def in_words(metrics: dict[str, float], name: str, interval: bool = False) -> str:
    """A number of a page, with its interval if that is asked for; a dash if it is absent."""
    if name not in metrics:
        return "-"
    text = f"{metrics[name]:.3g}"
    if interval and f"{name}_low" in metrics:
        text += f" ({metrics[f'{name}_low']:.3g} to {metrics[f'{name}_high']:.3g})"
    return text


def curves(root: Path, model: str) -> list[Figure]:
    """Loss and denoising errors of a training of clips."""
    training: dict[str, Any] = files.read_json(paths.model_folder(root, model) / "training.json")
    images, loss = zip(*training["loss"], strict=True)
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "loss.png", Path(folder) / "watch.png"
        drawing.curves(first, {"training loss": (images, loss)}, "clips seen", "loss", "y")
        memorization_curves(training, second)
        return [
            Figure.read(first, "Training loss against clips seen."),
            Figure.read(second, "Denoising error on training and held-out clips during training, with the same noise."),
        ]
