"""Stage `sample_motion`: new motion, and motion that continues, connects or follows what is given, in `samples/motion/`.

The folder has the format of the shards; a sample's member `clip.npy` is float32 [frames, 33, 3] in the form of
`tasks.common.motion`. The splits:

    samples     given the categories of held-out clips; the metrics of the report are about these
    followed    given category and path of the hips of held-out clips
    continued   given the first half of held-out clips
    connected   given the first and the last pose of held-out clips
    held        given hips, legs and feet of held-out clips: the rest is sampled
    looped      the end continues in the beginning
    long        several windows that overlap, by reconstruction guidance

The JSON of a sample has its seed, number, category and, where something is given, the key of the clip that it is from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_core.conditioning import Cond, rows
from tasks import paths
from tasks.common import motion
from tasks.common.skeleton import INDEX
from tasks.common.subset import evenly_spaced
from tasks.config.motion import MotionSample
from tasks.config.params import Params
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.models import modality, model_file, motion_control
from tasks.models.motion import path_map
from tasks.models.motion_control import Plan
from tasks.models.sampler import Sampler
from tasks.plots import drawing, motion_plots
from tasks.sample.batches import Wanted, in_batches
from tasks.sample.stage import resampled

LEGS = [
    INDEX[f"{side}_{name}"]
    for side in ("left", "right")
    for name in ("hip", "knee", "ankle", "heel", "foot_index")
]  # fmt: skip
WINDOWS = 3  # of a long motion
ROWS = 8  # of the grid


@dataclass(frozen=True)
class Asked:
    """Clips to draw: their categories, the keys of the clips that something is given of, and what draws those with some
    numbers, `[n, frames, 33, 3]`."""

    category: list[str]
    key: list[str]
    draw: Callable[[Tensor], np.ndarray]


def run(params: Params, root: Path) -> None:
    """Draw all splits. Raises DataError if a sample is not finite, or the model or the clips are missing."""
    choice = params.motion.sample
    model = model_file.load(paths.model_folder(root, paths.MOTION), modality.device())
    held_out = ShardDataset(root / paths.CLIPS, "val", "test")
    source = held_out if len(held_out) else ShardDataset(root / paths.CLIPS, "train")  # very few sources
    chosen = resampled(len(source), choice.count, choice.seed)
    categories = [str(source.meta(i)["category"]) for i in chosen]
    sampler = Sampler(model, choice)
    asked = {SAMPLES: Asked(categories, [""] * len(chosen), _plain(sampler, choice, model.conditions(categories)))}
    if choice.examples:
        asked |= controlled(sampler, choice, source.take(evenly_spaced(len(source), choice.examples)))
    wanted = {split: Wanted(len(one.key), one.draw) for split, one in asked.items()}
    drawn = in_batches(wanted, choice.batch, "sample motion")
    about = {
        "model": paths.MOTION,
        "model_digest": model.meta["digest"],
        "categories": model.categories,
        "frames": model.shape[0],
        "rate": model.clip.rate if model.clip else 0.0,
        "overlap": choice.overlap,
    }
    folder = paths.sample_folder(root, paths.MOTION)
    shards.write(
        folder,
        {split: list(_samples(choice, split, clips, asked[split])) for split, clips in drawn.items()},
        max(choice.count, 1),
        about,
    )
    first = [categories.index(name) for name in sorted(set(categories))]
    strips = motion_plots.strips(drawn[SAMPLES][first], [categories[i] for i in first])
    drawing.save_png(folder / paths.GRID, strips)


def _plain(sampler: Sampler, choice: MotionSample, cond: Cond) -> Callable[[Tensor], np.ndarray]:
    """What draws clips with some of these conditions."""

    def draw(ids: Tensor) -> np.ndarray:
        values = sampler.draw(rows(cond, ids), choice.seed, ids, choice.batch)
        return motion.from_features(values.numpy())

    return draw


def controlled(sampler: Sampler, choice: MotionSample, given: ShardDataset) -> dict[str, Asked]:
    """Examples of every way to control the model; what is given is taken from these clips."""
    model, clips, keys = sampler.model, given.clips(), list(given.keys)
    categories = [str(meta["category"]) for meta in given.metas()]
    plan, cond = Plan(choice, choice.seed), model.conditions(categories)
    frames = model.shape[0]
    overlap = min(choice.overlap, frames - 1)

    def completed(known: np.ndarray, ids: Tensor) -> np.ndarray:
        return motion_control.given(model, known[ids.numpy()], rows(cond, ids), ids, plan)

    def looped(ids: Tensor) -> np.ndarray:
        return motion_control.loop(model, rows(cond, ids), ids, plan)

    def long(ids: Tensor) -> np.ndarray:
        same = rows(cond, ids)
        return motion_control.long(model, WINDOWS, overlap, lambda window: same, ids, plan, choice.strength)

    known = {
        "continued": motion_control.frames_given(clips, list(range(frames // 2))),
        "connected": motion_control.frames_given(clips, [0, frames - 1]),
        "held": motion_control.joints_given(clips, LEGS),
    }
    asked = {}
    if "path" in model.config.conditions:
        path = torch.from_numpy(motion.features(clips)[:, :, motion.PATH])
        asked["followed"] = Asked(categories, keys, _plain(sampler, choice, {**cond, **path_map(path)}))
    asked |= {split: Asked(categories, keys, partial(completed, some)) for split, some in known.items()}
    nothing = [""] * len(clips)
    return asked | {"looped": Asked(categories, nothing, looped), "long": Asked(categories, nothing, long)}


def _samples(
    choice: MotionSample, split: str, clips: np.ndarray, asked: Asked
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i, (clip, category, key) in enumerate(zip(clips, asked.category, asked.key, strict=True)):
        about = {
            "model": paths.MOTION, "category": category, "given": key, "seed": choice.seed, "number": i,
            "sampling": choice.sampling_json,
        }  # fmt: skip
        name = paths.MOTION if split == SAMPLES else f"{paths.MOTION}-{split}"
        yield (
            f"{name}-{choice.seed}-{i:06d}",
            {"clip.npy": shards.encode_pose(clip), "json": shards.encode_json(about)},
        )
