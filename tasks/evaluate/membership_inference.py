"""Stage `membership_inference`: does a model denoise its training examples better than held-out ones?

Writes reports/membership_inference/. tasks/metrics/membership_inference.py defines the gap and when it is alarming. The bits
per dimension that `likelihood.models` asks for are measured here too, see tasks/evaluate/likelihood.py.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from diffusion_core.conditioning import to_device
from tasks import paths
from tasks.common.errors import DataError
from tasks.common.files import new_folder, write_json
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params, Upscaler
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import likelihood, model_examples
from tasks.metrics.membership_inference import ALARM, SIGMAS, LevelGap, gaps, losses, sentence
from tasks.models import modality, model_file, upscaler
from tasks.models.inputs import Examples
from tasks.models.modality import Model
from tasks.plots import colours
from tasks.plots.colours import FIT, HELDOUT, TRAIN

MOST = 256  # examples of each set


def loss_gaps(root: Path, name: str, smallest: int) -> list[LevelGap]:
    """The loss gaps of a trained model between the training and held-out examples of data/shards, at most MOST of each.

    `smallest`: pixels of a picture before the upscaler. Empty if a set has fewer than two examples. Raises DataError if the
    model or the shards are missing.
    """
    model = model_file.load(paths.model_folder(root, name), modality.device())
    table = []
    for splits in (("train",), ("val", "test")):
        chosen = _crops(root, splits, model, smallest) if name == paths.UPSCALER else _examples(root, splits, model)
        if len(chosen) < 2:
            return []
        with model.autocast():
            table.append(losses(model.as_sampled(model.denoiser), chosen.x0, chosen.cond, SIGMAS, recipe=model.recipe))
    return gaps(SIGMAS, *table)


def _examples(root: Path, splits: tuple[str, ...], model: Model) -> Examples:
    """At most MOST examples of the splits in the network's units."""
    examples = model_examples.of_splits(root, model, *splits)
    if not len(examples):
        return examples
    return Examples(model.codec.encode(examples.x0), examples.cond).some(MOST)


def _crops(root: Path, splits: tuple[str, ...], model: Model, smallest: int) -> Examples:
    """At most MOST of the upscaler's crops of the splits in the network's units; none if nobody has the pixels."""
    assert isinstance(model.config, Upscaler)
    try:
        crops = upscaler.CropDataset(ShardDataset(root / paths.SHARDS, *splits).pictured(), model.config, smallest)
    except DataError:
        return Examples(torch.zeros(0), {})
    chosen = upscaler.examples(model, crops, torch.tensor(evenly_spaced(crops.uncopied, MOST)))
    x0 = chosen.x0.to(modality.device())
    return Examples(x0, to_device(chosen.cond, x0.device))


def draw(gaps_of: dict[str, list[LevelGap]], path: Path) -> None:
    """PNG with one column per model: the loss of both sets against the noise level, and below it the AUC with its interval."""
    figure = Figure(figsize=(4.8 * len(gaps_of), 5.4), layout="constrained")
    for column, (name, rows) in zip(figure.subplots(2, len(gaps_of), squeeze=False).T, gaps_of.items(), strict=True):
        sigma = [row.sigma for row in rows]
        column[0].set_title(name, fontsize=10)
        column[0].plot(sigma, [row.train for row in rows], "o-", color=TRAIN, label="train")
        column[0].plot(sigma, [row.heldout for row in rows], "o-", color=HELDOUT, label="held-out")
        column[0].set_yscale("log")
        column[0].set_ylabel("loss / noise variance")
        column[0].legend(fontsize=8)
        value = np.array([(row.auc, row.auc - row.low, row.high - row.auc) for row in rows]).reshape(-1, 3).T
        column[1].errorbar(sigma, value[0], yerr=value[1:], fmt="o-", color=FIT, capsize=3)
        column[1].axhline(0.5, color=TRAIN, linewidth=0.8)
        column[1].axhline(ALARM, color=colours.ALARM, linewidth=0.8, linestyle="--")
        column[1].set_ylim(0.3, 1.02)
        column[1].set_ylabel("AUC: train against held-out")
        for axes in column:
            axes.set_xscale("log")
            axes.set_xlabel("noise level sigma (data: 0.5)")
            axes.grid(alpha=0.3, linewidth=0.4)
    figure.savefig(path, dpi=110)


def run(params: Params, root: Path) -> None:
    """Compute the loss gaps of the models and write membership_inference.json and a figure.

    The JSON holds, per model, `alarm`, `sentence` and `levels`, the flat `metrics` of all, and the `likelihood`.
    """
    gaps_of = {name: loss_gaps(root, params.sampled(name), params.pictures.size) for name in paths.trained_models(root)}
    entries: dict[str, Any] = {
        name: {
            "alarm": any(row.alarming for row in rows),
            "sentence": sentence(rows),
            "levels": [asdict(row) for row in rows],
        }
        for name, rows in gaps_of.items()
    }
    metrics = {f"{name}.loss_gap_auc.sigma_{row.sigma:g}": row.auc for name, rows in gaps_of.items() for row in rows}
    with new_folder(root / paths.MEMBERSHIP_INFERENCE) as folder:
        compared = {name: rows for name, rows in gaps_of.items() if rows}
        if compared:
            draw(compared, folder / "membership_inference.png")
        document = {"models": entries, "metrics": metrics, "likelihood": likelihood.run(params, root)}
        write_json(folder / "membership_inference.json", document)
