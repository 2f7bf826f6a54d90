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
import torch
from pydantic import ValidationError

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Generate, Params, validation_sentence
from tasks.config.sampling import SamplingChoices
from tasks.dataset import shards
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.plots import drawing, motion_plots
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample import export_motion
from tasks.sample.motion_requests import Animator, MotionRequest

ROUND = 64  # motions at a time
SHOWN = 16  # rows of the grid
SPLIT = "generated"

log = logging.getLogger(__name__)


def run(params: Params, root: Path) -> None:
    """Generate motion as `params.generate` says; how it is sampled is that of `params.motion.sample`.

    Raises UserError if there is no such model or the request is invalid.
    """
    settings, choice = params.generate, params.motion.sample
    folder = model_registry.fetch(Store(params.tracking, root), root, paths.MOTION, settings.alias)

    def prepare(model: Model, how: SamplingChoices) -> Sampler:
        return model_registry.sampler(params, root, folder, how, model)

    animator = Animator(folder, prepare, choice.strength)
    categories = [settings.category] if settings.category else animator.categories
    names = [categories[number % len(categories)] for number in range(settings.count)]
    parts: dict[int, np.ndarray] = {}
    rate = 0.0
    for category in dict.fromkeys(names):
        request = request_of(settings, choice, category)
        rows = [number for number, name in enumerate(names) if name == category]
        for start in range(0, len(rows), ROUND):
            numbers = rows[start : start + ROUND]
            try:
                motions = animator.samples(request, torch.tensor(numbers))
            except ValueError as error:
                raise UserError(f"params.yaml: generate: {error}.") from error
            parts |= dict(zip(numbers, motions.clips, strict=True))
            rate = motions.rate
        log.info(f"{len(parts)} of {settings.count} motions")
    clips = np.stack([parts[number] for number in range(settings.count)])
    about = {"categories": animator.categories, "models": [folder.name], "frames": clips.shape[1], "rate": rate}
    write(root / paths.GENERATED, clips, names, settings, about)
    log.info(f"{settings.count} motions in {root / paths.GENERATED}")


def request_of(settings: Generate, choice: SamplingChoices, category: str) -> MotionRequest:
    """The request for motion of a category. Raises UserError if a value is not allowed."""
    given = {
        "category": category, "pose": settings.pose, "velocity": settings.velocity, "seconds": settings.seconds,
        "lock_feet": settings.lock_feet,
        "seed": settings.seed, **{key: getattr(choice, key) for key in SamplingChoices.model_fields},
    }  # fmt: skip
    try:
        return MotionRequest(**given)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), "params.yaml: generate", given)) from error


def write(folder: Path, clips: np.ndarray, names: list[str], settings: Generate, about: dict[str, Any]) -> None:
    """Write motions `[n, frames, 33, 3]` as shards, for other programs, and as a picture."""
    keys = [f"{SPLIT}-{settings.seed}-{number:06d}" for number in range(len(clips))]
    metas = [{"category": name, "seed": settings.seed, "number": number} for number, name in enumerate(names)]
    samples = [
        (key, {"clip.npy": shards.encode_pose(clip), "json": shards.encode_json(meta)})
        for key, clip, meta in zip(keys, clips, metas, strict=True)
    ]
    with files.new_folder(folder) as temporary:
        written = temporary / "shards"
        shards.write(written, {SPLIT: samples}, 1000, about)
        for path in written.iterdir():
            path.rename(temporary / path.name)
        written.rmdir()
        for key, clip in zip(keys, clips, strict=True):
            export_motion.export(temporary / "motion" / key, clip, about["rate"])
        asked = settings.model_dump(
            include={"category", "pose", "velocity", "seconds", "lock_feet", "count", "seed", "alias"}
        )
        files.write_json(temporary / "generated.json", {"kind": settings.kind, **asked, "rate": about["rate"]})
        drawing.save_png(temporary / paths.GRID, motion_plots.strips(clips[:SHOWN], names[:SHOWN]))
