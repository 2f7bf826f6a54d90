"""The examples of the shards as a model is given them, for metrics that ask the model itself."""

from __future__ import annotations

from pathlib import Path

import torch

from diffusion_core.conditioning import to_device
from tasks.config.params import Upscaler
from tasks.models import inputs, modality
from tasks.models.inputs import Examples
from tasks.models.modality import Model


def of_splits(root: Path, model: Model, *splits: str) -> Examples:
    """The examples of these splits of data/shards that the model can use, in data units, on the device of the models.

    The upscaler has crops in place of examples (`models.upscaler.CropDataset`). Raises DataError if the shards are missing.
    """
    assert not isinstance(model.config, Upscaler)
    datasets = [inputs.usable(root, split, model.config) for split in splits]
    parts = [model.examples(dataset) for dataset in datasets if len(dataset)]
    if not parts:
        return Examples(torch.zeros(0), {})
    x0 = torch.cat([part.x0 for part in parts]).to(modality.device())
    cond = {key: torch.cat([part.cond[key] for part in parts]) for key in parts[0].cond}
    return Examples(x0, to_device(cond, x0.device))
