"""Command `generate` with `generate.kind: motion`: motion on request by a registered model.

`generated/` holds

    generated-000000.tar, index.json   shards: clip.npy, and its category, seed and number
    motion/                            each motion as BVH, joint angles (CSV), looping picture and video (`export_motion`)
    generated.json                     what was asked for, and the frame rate
    grid.png                           the first motions as strips
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tasks import paths
from tasks.common.arrays import Arrays
from tasks.config.params import Generate, Params
from tasks.config.sampling import SamplingChoices
from tasks.dataset import shards
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.plots import drawing, motion_plots
from tasks.registry import model_registry
from tasks.sample import export_motion, generated
from tasks.sample.motion_requests import Animator, MotionRequest

ROUND = 64  # motions at a time
SHOWN = 16  # rows of the grid

log = logging.getLogger(__name__)


def run(params: Params, root: Path, folder: Path) -> None:
    """Generate motion with the model in `folder`, as `params.generate` and `params.motion.sample` say.

    Raises UserError if the request is invalid.
    """
    settings, choice = params.generate, params.motion.sample

    def prepare(model: Model, how: SamplingChoices) -> Sampler:
        return model_registry.sampler(params, root, folder, how, model)

    animator = Animator(folder, prepare, choice.strength)

    def sample(category: str, numbers: Tensor) -> Arrays:
        motions = animator.samples(generated.request_of(MotionRequest, settings, choice, category), numbers)
        return {"clips": motions.clips, "rate": np.full(len(numbers), motions.rate)}

    names = generated.categories(settings, animator.categories, range(settings.count))
    made = generated.in_rounds(names, sample, ROUND, "motions")
    clips, rate = made["clips"], float(made["rate"][0])
    about = {"categories": animator.categories, "models": [folder.name], "frames": clips.shape[1], "rate": rate}
    write(root / paths.GENERATED, clips, names, settings, about)
    log.info(f"{settings.count} motions in {root / paths.GENERATED}")


def write(folder: Path, clips: np.ndarray, names: list[str], settings: Generate, about: dict[str, Any]) -> None:
    """Write motions `[n, frames, 33, 3]` as shards, for other programs, and as a picture."""
    keys = [generated.key(settings, number) for number in range(len(clips))]
    metas = [{"category": name, "seed": settings.seed, "number": number} for number, name in enumerate(names)]
    samples = [
        (key, {"clip.npy": shards.encode_pose(clip), "json": shards.encode_json(meta)})
        for key, clip, meta in zip(keys, clips, metas, strict=True)
    ]
    with generated.new_folder(folder, samples, about) as temporary:
        for key, clip in zip(keys, clips, strict=True):
            export_motion.export(temporary / "motion" / key, clip, about["rate"])
        generated.write_asked(temporary, settings, MotionRequest, about["rate"])
        drawing.save_png(temporary / paths.GRID, motion_plots.strips(clips[:SHOWN], names[:SHOWN]))
