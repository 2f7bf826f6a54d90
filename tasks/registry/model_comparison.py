"""The challenger against the champion: on the same held-out data, for the same conditions, from the same noise.

The champion is loaded from MLflow and samples again, with the seeds and conditions of the challenger's samples in `samples/`.
Held-out data change when data arrive, so the figures of the time when the champion was promoted are not comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion_core.training_choices import default_sampler
from tasks import paths
from tasks.common.images import area_average
from tasks.config.params import Params, Sample
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES, load_splits
from tasks.metrics.estimate import TooFewSamples
from tasks.metrics.features import joints, pixels
from tasks.metrics.kid import kid
from tasks.metrics.relative_kid import relative_kernel_distance
from tasks.models import inputs, modality, model_file, upscaler
from tasks.paths import MODELS, UPSCALER
from tasks.plots.interval_plot import Row
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.text.encoder import embeddings

ALL = "all"  # categories


@dataclass(frozen=True)
class CategoryComparison:
    """Kernel distances of both models to held-out data, and the difference, which is below 0 if the challenger is nearer.

    `category`: ALL, or the only category of samples and held-out data that was compared. `low`, `high`: the interval of the
    difference.
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
    """All comparisons. `absent`: model -> why it could not be compared; `same`: models identical to the champion's."""

    comparisons: list[CategoryComparison]
    absent: dict[str, str]
    same: list[str]

    def objections(self, worse_category: float) -> list[str]:
        """Why the challenger may not replace the champion, one sentence each; empty if it may.

        It may if one of the two models is better beyond the interval, the other is not worse beyond it, and in no category
        the whole interval of the difference lies above the share `worse_category` of the champion's distance.
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
        """The differences of one model, as rows of an interval plot."""
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
    """Compare the models in `artifacts/` with the champions. None if there is no champion or both models are the champions.

    Raises DataError if samples or shards are missing or the champion's file is damaged.
    """
    if any(model_registry.version(store, model, model_registry.CHAMPION) is None for model in MODELS):
        return None
    result = ModelComparison([], {}, [])
    held_out = load_splits(root)[1]
    champions = model_registry.fetch_all(store, root, model_registry.CHAMPION)
    enlarger = champions[UPSCALER].name if UPSCALER in champions else None
    own_enlarger = paths.model_sha256(root, UPSCALER) if UPSCALER in paths.trained_models(root) else None
    for model in MODELS:
        folder = champions[model]
        same_file = folder.name == paths.model_sha256(root, params.sampled(model))
        if same_file and (model == "poses" or enlarger == own_enlarger):
            result.same.append(model)
            continue
        samples = ShardDataset(paths.sample_folder(root, model), SAMPLES)
        categories = [str(meta["category"]) for meta in samples.metas()]
        ours, theirs, real, real_categories = _features(params, root, model, champions, samples, held_out)
        _compare(result, model, (ours, theirs), categories, real, real_categories)
    return None if len(result.same) == len(MODELS) else result


def _features(
    params: Params, root: Path, name: str, champions: dict[str, Path], samples: ShardDataset, held_out: ShardDataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Features of the challenger's samples, the champion's samples and held-out data, and the categories of the latter."""
    choice: Sample = getattr(params.sample, name)
    folder = champions[name]
    champion = model_file.load(folder, modality.device())
    how: SamplingChoices = champion.fitting(choice)
    if champion.student is None and choice.model == paths.student(name):  # the student's few steps would be unfair
        how = SamplingChoices(sampler=default_sampler(champion.config.recipe), guidance=choice.guidance)
    sampler = model_registry.sampler(params, root, folder, how, champion)
    metas = samples.metas()
    asked = samples.poses() if name == "pictures" else None
    text = None
    if champion.text is not None and all("caption" in meta for meta in metas):
        text = embeddings(root, champion.text.encoder, [meta["caption"] for meta in metas])
    cond = champion.conditions([str(meta["category"]) for meta in metas], asked, text)
    ids = torch.tensor([int(meta["number"]) for meta in metas])
    sampled = sampler.draw(cond, choice.seed, ids, choice.batch, label=f"the champion's {name}")
    if name == "poses":
        return joints(samples.poses()), joints(sampled.numpy()), joints(held_out.poses()), _categories(held_out)
    pictured = held_out.pictured()
    pictures = inputs.as_pictures(sampled)
    if UPSCALER in champions:
        del champion, sampler  # one model in memory at a time
        enlarger = model_file.load(champions[UPSCALER], modality.device())
        label = "upscale the champion's pictures"
        pictures = upscaler.upscale(enlarger, pictures, params.sample.upscaler, choice.seed, ids, label)
    size = min(samples.picture(0).shape[0], pictures.shape[1])  # the smaller of the two sizes: pictures can be reduced
    theirs = np.stack([area_average(picture, size) for picture in pictures])
    sets = [
        pixels(each)
        for each in (samples.pictures_float(size), theirs.astype(np.float32) / 255, pictured.pictures_float(size))
    ]
    return sets[0], sets[1], sets[2], _categories(pictured)


def _categories(split: ShardDataset) -> list[str]:
    return [str(meta["category"]) for meta in split.metas()]


def _compare(
    result: ModelComparison,
    model: str,
    samples: tuple[np.ndarray, np.ndarray],
    categories: Sequence[str],
    held_out: np.ndarray,
    held_out_categories: Sequence[str],
) -> None:
    """Add the comparison of all samples, and of each category with enough of them.

    `samples`: features of the challenger's and the champion's, row by row for the same condition.
    """
    for category in (ALL, *sorted(set(categories))):
        rows = [category in (ALL, name) for name in categories]
        ours, theirs = (features[rows] for features in samples)
        reference = held_out[[category in (ALL, name) for name in held_out_categories]]
        try:
            difference = relative_kernel_distance(ours, theirs, reference)
        except TooFewSamples as error:
            if category == ALL:
                result.absent[model] = f"The {model} model: {error}"
            continue
        challenger, champion = (kid(features, reference).value for features in (ours, theirs))
        result.comparisons.append(
            CategoryComparison(model, category, challenger, champion, difference.value, difference.low, difference.high)
        )
