"""What the gates of the motion and the video model share: the comparison with the champion, and the registration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.relative_kid import relative_kernel_distance
from tasks.models import modality, model_file
from tasks.models.modality import Model
from tasks.registry import model_registry
from tasks.registry.tracking import Store


def another_champion(root: Path, store: Store, model: str) -> Model | None:
    """The champion of a model, unless there is none or it is the model in `artifacts/` itself."""
    if model_registry.version(store, model, model_registry.CHAMPION) is None:
        return None
    folder = model_registry.fetch(store, root, model, model_registry.CHAMPION)
    if folder.name == paths.model_sha256(root, model):
        return None
    return model_file.load(folder, modality.device())


def difference(ours: np.ndarray, theirs: np.ndarray, real: np.ndarray) -> dict[str, float] | None:
    """The kernel distance of our features to those of real examples minus theirs, with its interval; None if there are too
    few."""
    try:
        found = relative_kernel_distance(ours, theirs, real)
    except TooFewSamples:
        return None
    return {"difference": found.value, "low": found.low, "high": found.high}


def worse(compared: dict[str, float] | None) -> list[str]:
    """The sentence that the champion is better beyond the interval, if it is."""
    if compared is None or compared["low"] <= 0:
        return []
    return [
        "the champion is nearer to held-out clips beyond the interval: the difference of the kernel distances is "
        f"{compared['difference']:.3g}."
    ]


def decide(
    root: Path,
    store: Store,
    model: str,
    reasons: list[str],
    compared: dict[str, float] | None,
    verdict: str,
    metrics: dict[str, float],
) -> dict[str, Any]:
    """Register the model in `artifacts/`, as champion if there is no reason against it; returns the outcome as JSON."""
    reasons = [reason[0].upper() + reason[1:] for reason in reasons]
    folder = paths.model_folder(root, model)
    card = model_registry.card_of(folder, verdict, metrics, reasons)
    number = store.register(model, folder, paths.model_sha256(root, model), card)
    if not reasons:
        model_registry.make_champions(store, {model: number}, (model,))
    return {"promote": not reasons, "reasons": reasons, "model_comparison": compared}
