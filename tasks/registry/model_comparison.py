"""The challenger against the champion: the same held-out data, the same conditions, the same noise.

The champion is taken from MLflow and draws again, with the seeds and conditions of the challenger's samples that lie in
`samples/`. Held-out data change when data arrive, so that numbers which were written down when the champion was crowned
would compare two models by two yardsticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tasks import paths
from tasks.config.params import Params, Sample
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES, load_splits
from tasks.metrics.estimate import Estimate, TooFewSamples
from tasks.metrics.features import joints, pixels
from tasks.metrics.kid import kid
from tasks.metrics.relative_kid import relative_kernel_distance
from tasks.models import modality, sampler
from tasks.paths import MODELS
from tasks.plots.interval_plot import Row
from tasks.registry import model_registry
from tasks.registry.tracking import Store

ALL = "all"


@dataclass(frozen=True)
class CategoryComparison:
    """One comparison: kernel distances of both to held-out data, and their difference (below 0: the challenger is nearer).

    `category`: "all", or the one that samples and held-out data were narrowed to.
    """

    model: str
    category: str
    challenger: float
    champion: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelComparison:
    """All comparisons, and why some could not be made. `same`: models that are the champion's, byte for byte."""

    comparisons: list[CategoryComparison]
    absent: dict[str, str]
    same: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def objections(self, worse_category: float) -> list[str]:
        """Why the challenger may not take the champion's place, a sentence each; none if it may.

        It may if the pose or the picture model is better beyond the interval and the other not worse beyond it, and in no
        category the distance has grown, beyond the interval, by more than the share `worse_category` of the champion's.
        """
        whole = [comparison for comparison in self.comparisons if comparison.category == ALL]
        reasons = [
            f"the {comparison.model} model is worse than the champion beyond the interval: its distance to held-out data is "
            f"{comparison.challenger:.3g}, the champion's {comparison.champion:.3g}."
            for comparison in whole
            if comparison.low > 0
        ]
        if not any(comparison.high < 0 for comparison in whole):
            missing = "".join(f" {reason}" for reason in self.absent.values())
            reasons.append(f"neither model is better than the champion beyond the interval.{missing}")
        for comparison in self.comparisons:
            if comparison.category != ALL and comparison.low > worse_category * max(comparison.champion, 0.0):
                reasons.append(
                    f"in the category {comparison.category} the {comparison.model} model has become worse by more than "
                    f"{worse_category:.0%}: from {comparison.champion:.3g} to {comparison.challenger:.3g}."
                )
        return reasons

    def figure_rows(self, model: str) -> list[Row]:
        """The differences of one model for `interval_figure`."""
        return [
            Row(
                comparison.category,
                comparison.difference,
                comparison.low,
                comparison.high,
                series=comparison.category != ALL,
            )
            for comparison in self.comparisons
            if comparison.model == model
        ]


def run(params: Params, root: Path, store: Store) -> ModelComparison | None:
    """Compare the models in `artifacts/` with the champions; None if there is no other champion.

    Raises DataError if samples or shards are missing or the champion's file is damaged.
    """
    if any(model_registry.version(store, model, model_registry.CHAMPION) is None for model in MODELS):
        return None
    result = ModelComparison([], {}, [])
    held_out = load_splits(root)[1]
    for model in MODELS:
        folder = model_registry.fetch(store, root, model, model_registry.CHAMPION)
        if folder.name == paths.model_sha256(root, model):
            result.same.append(model)
            continue
        samples = ShardDataset(paths.sample_folder(root, model), SAMPLES)
        categories = [str(meta["category"]) for meta in samples.metas()]
        ours, theirs, real, known = _features(params, model, folder, samples, held_out)
        _compare(result, model, (ours, theirs), categories, real, known)
    return None if len(result.same) == len(MODELS) else result


def _features(
    params: Params, name: str, folder: Path, samples: ShardDataset, held_out: ShardDataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Features of the challenger's samples, of the champion's and of held-out data, and the latter's categories."""
    champion = modality.load(folder, modality.device())
    choice: Sample = getattr(params.sample, name)
    metas = samples.metas()
    asked = samples.poses() if name == "pictures" else None
    cond = champion.conditions([str(meta["category"]) for meta in metas], asked)
    ids = torch.tensor([int(meta["number"]) for meta in metas])
    drawn = sampler.draw(
        champion, cond, choice.steps, choice.guidance, choice.seed, ids, choice.batch, label=f"the champion's {name}"
    )
    if name == "poses":
        return joints(samples.poses()), joints(drawn.numpy()), joints(held_out.poses()), _categories(held_out)
    pictured = held_out.pictured()
    size = min(samples.picture(0).shape[0], drawn.shape[-1])  # of two sizes the smaller: both can be made as small
    theirs = np.stack([_shrunk(picture, size) for picture in modality.as_pictures(drawn)])
    sets = [
        pixels(some)
        for some in (samples.pictures_float(size), theirs.astype(np.float32) / 255, pictured.pictures_float(size))
    ]
    return sets[0], sets[1], sets[2], _categories(pictured)


def _categories(split: ShardDataset) -> list[str]:
    return [str(meta["category"]) for meta in split.metas()]


def _shrunk(picture: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BOX))


def _compare(
    result: ModelComparison,
    model: str,
    drawn: tuple[np.ndarray, np.ndarray],
    categories: Sequence[str],
    real: np.ndarray,
    known: Sequence[str],
) -> None:
    """Add the comparison of all samples, and of each category with enough of them."""
    for category in (ALL, *sorted(set(categories))):
        rows = [category in (ALL, name) for name in categories]
        ours, theirs = (features[rows] for features in drawn)
        reference = real[[category in (ALL, name) for name in known]]
        try:
            found: Estimate = relative_kernel_distance(ours, theirs, reference)
        except TooFewSamples as error:
            if category == ALL:
                result.absent[model] = f"The {model} model: {error}"
            continue
        challenger, champion = (kid(features, reference).value for features in (ours, theirs))
        result.comparisons.append(
            CategoryComparison(model, category, challenger, champion, found.value, found.low, found.high)
        )
