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
from pathlib import Path

import numpy as np
import torch

from diffusion_core.conditioning import Cond
from tasks import paths
from tasks.common import motion
from tasks.common.skeleton import INDEX
from tasks.common.subset import evenly_spaced
from tasks.config.motion import MotionSample
from tasks.config.params import Params
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.models import modality, model_file, motion_control, sampler
from tasks.models.modality import Model
from tasks.models.motion import path_map
from tasks.models.motion_control import Plan
from tasks.plots import drawing, motion_plots
from tasks.sample.stage import resampled

LEGS = [
    INDEX[f"{side}_{name}"]
    for side in ("left", "right")
    for name in ("hip", "knee", "ankle", "heel", "foot_index")
]  # fmt: skip
WINDOWS = 3  # of a long motion
ROWS = 8  # of the grid


def run(params: Params, root: Path) -> None:
    """Draw all splits. Raises DataError if a sample is not finite, or the model or the clips are missing."""
    choice = params.motion.sample
    model = model_file.load(paths.model_folder(root, paths.MOTION), modality.device())
    held_out = ShardDataset(root / paths.CLIPS, "val", "test")
    source = held_out if len(held_out) else ShardDataset(root / paths.CLIPS, "train")  # very few sources
    drawn: dict[str, tuple[np.ndarray, list[str], list[str]]] = {}
    rows = resampled(len(source), choice.count, choice.seed)
    categories = [str(source.meta(i)["category"]) for i in rows]
    values = sampler.draw(
        model, model.conditions(categories), choice, choice.seed,
        torch.arange(len(rows)), choice.batch, label="sample motion",
    )  # fmt: skip
    drawn[SAMPLES] = motion.from_features(values.numpy()), categories, [""] * len(rows)
    if choice.examples:
        shown = source.take(evenly_spaced(len(source), choice.examples))
        drawn |= controlled(model, choice, shown)
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
        {split: list(_samples(choice, split, *results)) for split, results in drawn.items()},
        max(choice.count, 1),
        about,
    )
    clips, names, _ = drawn[SAMPLES]
    first = [names.index(name) for name in sorted(set(names))]
    drawing.save_png(folder / paths.GRID, motion_plots.strips(clips[first], [names[i] for i in first]))


def controlled(
    model: Model, choice: MotionSample, given: ShardDataset
) -> dict[str, tuple[np.ndarray, list[str], list[str]]]:
    """Examples of every way to control the model; what is given is taken from these clips. Split -> clips, categories, keys."""
    clips, keys = given.clips(), list(given.keys)
    categories = [str(meta["category"]) for meta in given.metas()]
    plan = Plan(choice, choice.seed)
    ids, cond = torch.arange(len(clips)), model.conditions(categories)
    frames = model.shape[0]
    out: dict[str, tuple[np.ndarray, list[str], list[str]]] = {}
    if "path" in model.config.conditions:
        path = torch.from_numpy(motion.features(clips)[:, :, motion.PATH])
        values = sampler.draw(
            model, {**cond, **path_map(path)}, choice, choice.seed, ids, choice.batch,
        )  # fmt: skip
        out["followed"] = motion.from_features(values.numpy()), categories, keys
    asked: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "continued": lambda clips: motion_control.frames_given(clips, list(range(frames // 2))),
        "connected": lambda clips: motion_control.frames_given(clips, [0, frames - 1]),
        "held": lambda clips: motion_control.joints_given(clips, LEGS),
    }
    for split, known in asked.items():
        out[split] = motion_control.given(model, known(clips), cond, ids, plan), categories, keys
    nothing = [""] * len(clips)
    out["looped"] = motion_control.loop(model, cond, ids, plan), categories, nothing

    def same(window: int) -> Cond:
        return cond

    overlap = min(choice.overlap, frames - 1)
    out["long"] = (
        motion_control.long(model, WINDOWS, overlap, same, ids, plan, choice.strength), categories, nothing
    )  # fmt: skip
    return out


def _samples(
    choice: MotionSample, split: str, clips: np.ndarray, categories: list[str], keys: list[str]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i, (clip, category, key) in enumerate(zip(clips, categories, keys, strict=True)):
        about = {
            "model": paths.MOTION, "category": category, "given": key, "seed": choice.seed, "number": i,
            "sampling": choice.sampling_json,
        }  # fmt: skip
        name = paths.MOTION if split == SAMPLES else f"{paths.MOTION}-{split}"
        yield (
            f"{name}-{choice.seed}-{i:06d}",
            {"clip.npy": shards.encode_pose(clip), "json": shards.encode_json(about)},
        )
