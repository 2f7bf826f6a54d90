"""Command `generate` with `generate.kind: video`: clips of pictures on request, by the registered models of motion and video.

`generated/` holds

    generated-000000.tar, index.json   shards: frames.npy, clip.npy, and its category, seed and number
    video/                             each clip as looping picture (WebP) and video (MP4)
    generated.json                     what was asked for, and the frame rate
    grid.png                           the first clips as strips
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from tasks import paths
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import Generate, Params, validation_sentence
from tasks.config.sampling import SamplingChoices
from tasks.dataset import frames, shards
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.plots import drawing, video_plots
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample.export_motion import mp4
from tasks.sample.motion_requests import Animator
from tasks.sample.video_requests import Filmmaker, VideoRequest, Videos, looping

ROUND = 16  # clips at a time
SHOWN = 16  # rows of the grid
SPLIT = "generated"

log = logging.getLogger(__name__)


def run(params: Params, root: Path) -> None:
    """Generate clips as `params.generate` says; they are sampled as `params.video.sample` says, their motion as
    `params.motion.sample` says.

    Raises UserError if there is no such model or the request is invalid.
    """
    settings, store = params.generate, Store(params.tracking, root)
    folders = {model: model_registry.fetch(store, root, model, settings.alias) for model in (paths.MOTION, paths.VIDEO)}

    def prepare(folder: Path, model: Model, how: SamplingChoices) -> Sampler:
        return model_registry.sampler(params, root, folder, how, model)

    animator = Animator(folders[paths.MOTION], partial(prepare, folders[paths.MOTION]), params.motion.sample.strength)
    filmmaker = Filmmaker(
        folders[paths.VIDEO], animator, partial(prepare, folders[paths.VIDEO]), params.motion.sample
    )  # fmt: skip
    categories = [settings.category] if settings.category else animator.categories
    names = [categories[number % len(categories)] for number in range(settings.count)]
    parts: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    rate = 0.0
    for category in dict.fromkeys(names):
        request = request_of(settings, params.video.sample, category)
        rows = [number for number, name in enumerate(names) if name == category]
        for start in range(0, len(rows), ROUND):
            numbers = rows[start : start + ROUND]
            try:
                made = filmmaker.samples(request, torch.tensor(numbers))
            except ValueError as error:
                raise UserError(f"params.yaml: generate: {error}.") from error
            parts |= dict(zip(numbers, zip(made.pictures, made.clips, strict=True), strict=True))
            rate = made.rate
            log.info(f"{len(parts)} of {settings.count} clips")
    pictures, clips = (np.stack([parts[number][i] for number in range(settings.count)]) for i in (0, 1))
    write(root / paths.GENERATED, Videos(pictures, clips, rate), names, settings, filmmaker)
    log.info(f"{settings.count} clips in {root / paths.GENERATED}")


def request_of(settings: Generate, choice: SamplingChoices, category: str) -> VideoRequest:
    """The request for clips of a category. Raises UserError if a value is not allowed."""
    given = {
        "category": category, "pose": settings.pose, "velocity": settings.velocity, "turn": settings.turn,
        "seed": settings.seed, **{key: getattr(choice, key) for key in SamplingChoices.model_fields},
    }  # fmt: skip
    try:
        return VideoRequest(**given)
    except ValidationError as error:
        raise UserError(validation_sentence(dict(error.errors()[0]), "params.yaml: generate", given)) from error


def write(folder: Path, made: Videos, names: list[str], settings: Generate, filmmaker: Filmmaker) -> None:
    """Write the clips as shards, for other programs, and as a picture."""
    keys = [f"{SPLIT}-{settings.seed}-{number:06d}" for number in range(len(names))]
    samples = [
        (key, {
            frames.FRAMES: frames.encode(pictures),
            "clip.npy": shards.encode_pose(clip),
            "json": shards.encode_json({"category": name, "seed": settings.seed, "number": number}),
        })
        for number, (key, name, pictures, clip) in enumerate(zip(keys, names, made.pictures, made.clips, strict=True))
    ]  # fmt: skip
    about = {
        "categories": filmmaker.animator.categories, "frames": made.clips.shape[1], "rate": made.rate,
        "size": made.pictures.shape[2], "margin": filmmaker.margin,
    }  # fmt: skip
    with files.new_folder(folder) as temporary:
        written = temporary / "shards"
        shards.write(written, {SPLIT: samples}, 1000, about)
        for path in written.iterdir():
            path.rename(temporary / path.name)
        written.rmdir()
        for key, pictures in zip(keys, made.pictures, strict=True):
            files.write_bytes(temporary / f"video/{key}.webp", looping(pictures, made.rate))
            with files.new_file(temporary / f"video/{key}.mp4") as path:
                mp4(path, [video_plots.even(picture) for picture in pictures], made.rate)
        asked = settings.model_dump(include={"category", "pose", "velocity", "turn", "count", "seed", "alias"})
        files.write_json(temporary / "generated.json", {"kind": settings.kind, **asked, "rate": made.rate})
        drawing.save_png(temporary / paths.GRID, video_plots.strips(made.pictures[:SHOWN], names[:SHOWN]))
