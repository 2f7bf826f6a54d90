"""Command `generate` with `generate.kind: video`: clips of pictures on request, by the registered models of motion and video.

`generated/` holds

    generated-000000.tar, index.json   shards: frames.npy, clip.npy, and its category, seed and number
    video/                             each clip as looping picture (WebP) and video (MP4)
    generated.json                     what was asked for, and the frame rate
    grid.png                           the first clips as strips
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from tasks import paths
from tasks.common import files
from tasks.common.arrays import Arrays
from tasks.config.params import Generate, Params
from tasks.config.sampling import SamplingChoices
from tasks.dataset import frames, shards
from tasks.models.modality import Model
from tasks.models.sampler import Sampler
from tasks.plots import drawing, video_plots
from tasks.registry import model_registry
from tasks.sample import generated
from tasks.sample.export_motion import mp4
from tasks.sample.motion_requests import Animator
from tasks.sample.video_requests import Filmmaker, VideoRequest, Videos, looping

ROUND = 16  # clips at a time
SHOWN = 16  # rows of the grid

log = logging.getLogger(__name__)


def run(params: Params, root: Path, folders: Mapping[str, Path]) -> None:
    """Generate clips with the models in these folders, as `params.generate` says.

    They are sampled as `params.video.sample` says, their motion as `params.motion.sample` says. Raises UserError if the request
    is invalid.
    """
    settings = params.generate

    def prepare(folder: Path, model: Model, how: SamplingChoices) -> Sampler:
        return model_registry.sampler(params, root, folder, how, model)

    animator = Animator(folders[paths.MOTION], partial(prepare, folders[paths.MOTION]), params.motion.sample.strength)
    filmmaker = Filmmaker(
        folders[paths.VIDEO], animator, partial(prepare, folders[paths.VIDEO]), params.motion.sample
    )  # fmt: skip

    def sample(category: str, numbers: Tensor) -> Arrays:
        request = generated.request_of(VideoRequest, settings, params.video.sample, category)
        made = filmmaker.samples(request, numbers)
        return {"pictures": made.pictures, "clips": made.clips, "rate": np.full(len(numbers), made.rate)}

    names = generated.categories(settings, animator.categories, range(settings.count))
    made = generated.in_rounds(names, sample, ROUND, "clips")
    videos = Videos(made["pictures"], made["clips"], float(made["rate"][0]))
    write(root / paths.GENERATED, videos, names, settings, filmmaker)
    log.info(f"{settings.count} clips in {root / paths.GENERATED}")


def write(folder: Path, made: Videos, names: list[str], settings: Generate, filmmaker: Filmmaker) -> None:
    """Write the clips as shards, for other programs, and as a picture."""
    keys = [generated.key(settings, number) for number in range(len(names))]
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
    with generated.new_folder(folder, samples, about) as temporary:
        for key, pictures in zip(keys, made.pictures, strict=True):
            files.write_bytes(temporary / f"video/{key}.webp", looping(pictures, made.rate))
            with files.new_file(temporary / f"video/{key}.mp4") as path:
                mp4(path, [video_plots.even(picture) for picture in pictures], made.rate)
        generated.write_asked(temporary, settings, VideoRequest, made.rate)
        drawing.save_png(temporary / paths.GRID, video_plots.strips(made.pictures[:SHOWN], names[:SHOWN]))
