"""Stage `sample_video`: pictures of people in motion, in `samples/video/`.

The folder has the format of the clips of pictures (`tasks.dataset.video_clips`). The splits:

    samples    the poses and categories of held-out clips; the metrics of the page are about these
    motions    the poses of motion that the motion model made, seen from a direction drawn for each
    apart      the first conditions of `samples` again, with frames that know nothing of each other, for comparison

The JSON of a sample has its seed, number, category and the key of the clip or motion whose poses it was to show. Also written
are `clips.webp` (looping) and `clips.mp4`, each clip beside its poses, and `grid.png`, frame by frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_core import rng
from tasks import paths
from tasks.common import files, motion
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.config.video import VideoSample
from tasks.dataset import frames, shards
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import SAMPLES
from tasks.models import inputs, modality, model_file, video
from tasks.models.sampler import Sampler
from tasks.plots import drawing, video_plots
from tasks.sample.batches import Wanted, in_batches
from tasks.sample.export_motion import mp4
from tasks.sample.stage import resampled

MOTIONS, APART = "motions", "apart"  # splits
TURN = 1.0  # radians by which generated motion is turned to either side, at most
SHOWN = 12  # clips in the pictures
COLUMNS = 4
TURNS, STARTS = 2, 3  # what else a seed is for: folded into it


@dataclass(frozen=True)
class Conditions:
    """Categories, clips `[n, frames, 33, 3]`, and the keys of the clips or motions that they are from."""

    category: list[str]
    clip: np.ndarray
    key: list[str]

    @classmethod
    def of(cls, source: ShardDataset) -> Conditions:
        """The conditions of the samples of a split."""
        return cls([str(meta["category"]) for meta in source.metas()], source.clips(), list(source.keys))

    def take(self, rows: Iterable[int]) -> Conditions:
        """Those with these numbers."""
        some = list(rows)
        return Conditions([self.category[i] for i in some], self.clip[some], [self.key[i] for i in some])

    def first(self, count: int) -> Conditions:
        """The first `count` of them."""
        return self.take(range(min(count, len(self.key))))


def run(params: Params, root: Path) -> None:
    """Draw all splits. Raises DataError if a sample is not finite, or the model, the clips or generated motion are missing."""
    choice = params.video.sample
    model = model_file.load(paths.model_folder(root, paths.VIDEO), modality.device())
    assert model.clip is not None
    held_out = ShardDataset(root / paths.VIDEO_CLIPS, "val", "test")
    source = held_out if len(held_out) else ShardDataset(root / paths.VIDEO_CLIPS, "train")  # very few sources
    asked = {SAMPLES: Conditions.of(source.take(resampled(len(source), choice.count, choice.seed)))}
    if choice.motions:
        generated = ShardDataset(paths.sample_folder(root, paths.MOTION), SAMPLES)
        asked[MOTIONS] = windows(generated, model.clip, choice)
    if choice.apart:
        asked[APART] = asked[SAMPLES].first(choice.apart)
    sampler = Sampler(model, choice)
    wanted = {
        split: Wanted(len(conditions.key), partial(draw, sampler, choice, conditions, split))
        for split, conditions in asked.items()
    }
    drawn = in_batches(wanted, choice.batch, "sample video")
    about = {
        "model": paths.VIDEO,
        "model_digest": model.meta["digest"],
        "categories": model.categories,
        "frames": model.clip.frames,
        "rate": model.clip.rate,
        "size": drawn[SAMPLES].shape[2],
        "margin": model.margin,
    }
    folder = paths.sample_folder(root, paths.VIDEO)
    shards.write(
        folder,
        {split: _samples(choice, split, asked[split], pictures) for split, pictures in drawn.items()},
        max(choice.count, 1),
        about,
    )
    shown = SAMPLES if MOTIONS not in drawn else MOTIONS
    conditions, pictures = asked[shown].first(SHOWN), drawn[shown][:SHOWN]
    sheets = video_plots.beside_poses(pictures, conditions.clip, model.margin, COLUMNS, conditions.category)
    files.write_bytes(folder / "clips.webp", video_plots.looping(sheets, model.clip.rate))
    with files.new_file(folder / "clips.mp4") as path:
        mp4(path, [video_plots.even(sheet) for sheet in sheets], model.clip.rate)
    drawing.save_png(folder / paths.GRID, video_plots.strips(pictures, conditions.category))


def windows(generated: ShardDataset, shape: modality.ClipShape, choice: VideoSample) -> Conditions:
    """Windows of generated motion, at the frame rate of the clips; which part of a motion, and from where it is seen, is drawn.

    Raises UserError if the motions are shorter than the clips.
    """
    rows = list(range(min(choice.motions, len(generated))))
    some, rate = generated.take(rows), float(generated.about["rate"])
    clips, ids = some.clips(), torch.arange(len(rows))
    length, spare = (shape.frames - 1) / shape.rate, (clips.shape[1] - 1) / rate - (shape.frames - 1) / shape.rate
    if spare < -1e-6:
        raise UserError(
            f"Generated motion is shorter than a clip of {length:.2f} seconds: lower video.clips.frames, or raise "
            "motion.clips.frames."
        )
    starts = rng.uniform((), rng.fold(choice.seed, STARTS), ids).numpy() * max(spare, 0.0)
    turns = (2 * rng.uniform((), rng.fold(choice.seed, TURNS), ids).numpy() - 1) * TURN
    times = np.arange(clips.shape[1]) / rate
    cut = [
        motion.resampled(clip, times, np.minimum(start + np.arange(shape.frames) / shape.rate, times[-1]))
        for clip, start in zip(clips, starts, strict=True)
    ]
    turned = motion.turned(np.stack(cut), turns)
    placed = turned - motion.middle_of_hips(turned[:, 0])[:, None, None]
    return Conditions([str(meta["category"]) for meta in some.metas()], placed.astype(np.float32), list(some.keys))


def draw(sampler: Sampler, choice: VideoSample, asked: Conditions, split: str, ids: Tensor) -> np.ndarray:
    """Clips uint8 `[n, frames, size, size, 3]` for the conditions with these numbers."""
    some = asked.take(ids.tolist())
    cond = sampler.model.conditions(some.category, some.clip)
    if split == APART:
        cond = video.apart(cond, len(ids), some.clip.shape[1])
    return inputs.as_clips(sampler.draw(cond, choice.seed, ids, choice.batch))


def _samples(
    choice: VideoSample, split: str, asked: Conditions, drawn: np.ndarray
) -> Iterator[tuple[str, dict[str, bytes]]]:
    name = paths.VIDEO if split == SAMPLES else f"{paths.VIDEO}-{split}"
    for i, pictures in enumerate(drawn):
        about = {
            "model": paths.VIDEO, "category": asked.category[i], "condition": asked.key[i], "seed": choice.seed,
            "number": i, "sampling": choice.sampling_json,
        }  # fmt: skip
        yield (
            f"{name}-{choice.seed}-{i:06d}",
            {
                frames.FRAMES: frames.encode(pictures),
                "clip.npy": shards.encode_pose(asked.clip[i]),
                "json": shards.encode_json(about),
            },
        )
