"""Stage `sample <model>`: new poses, or new pictures of given poses, in `samples/<model>/`.

The folder has the format of the shards. The JSON of a sample has its seed, number, category and, for a picture, the key of the
person (or sample) whose pose it was asked to show. The splits:

    samples            with conditions of held-out persons; the metrics of the reports are about these
    train_conditions   pictures only: the same noise with conditions of training persons. A model that copies does so most
                       readily for the conditions that it was trained on
    new_poses          pictures only: some generated poses, each with several noises; `grid.png` shows them

A sample is a function of (model, seed, number, condition): neither the batch size nor the count changes it. If there is an
upscaler, the pictures are enlarged by it; the picture model is out of memory by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_core import conditioning, rng
from diffusion_core.conditioning import Cond
from tasks import paths
from tasks.common.images import encode_png
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params, Sample
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset, captioned
from tasks.dataset.splits import COMPARISON, NEW_POSES, SAMPLES, load_splits
from tasks.models import inputs, modality, model_file, upscaler
from tasks.models.modality import EmbeddedText
from tasks.models.sampler import Sampler
from tasks.plots import drawing
from tasks.registry import model_registry
from tasks.sample.batches import Wanted, in_batches
from tasks.text.encoder import embeddings

GRID = 8  # rows and columns of the grid
TILE = 96  # pixels of a picture in the grid, at least


@dataclass(frozen=True)
class Conditions:
    """Categories, poses `[n, 33, 3]`, and the keys of the persons (or samples) that they are from.

    `caption`, `text`: the captions and their embeddings, for models with text.
    """

    category: list[str]
    pose: np.ndarray
    key: list[str]
    caption: list[str] | None = None
    text: np.ndarray | None = None

    @classmethod
    def of(cls, source: ShardDataset, rows: list[int]) -> Conditions:
        """The conditions of some samples of a split."""
        return cls([source.meta(i)["category"] for i in rows], source.poses()[rows], [source.keys[i] for i in rows])

    def with_text(self, captions: list[str], text: np.ndarray) -> Conditions:
        """The same with captions and their embeddings."""
        return replace(self, caption=captions, text=text)


def run(params: Params, root: Path, model: str) -> None:
    """Draw the samples of one model. Raises DataError if a sample is not finite, or the model or its conditions are missing."""
    choice: Sample = getattr(params.sample, model)
    trained = model_registry.sampler(params, root, paths.model_folder(root, choice.model), choice)
    train, heldout = load_splits(root)
    if model == "pictures":  # persons from motion captures have no picture
        train, heldout = train.pictured(), heldout.pictured()
    held_out = heldout if len(heldout) else train  # a very small dataset has no held-out persons
    rows = resampled(len(held_out), choice.count, choice.seed)
    about: dict[str, Any] = {
        "model": model, "model_digest": trained.model.meta["digest"], "categories": trained.model.categories,
        "sampling": choice.sampling_json,
    }  # fmt: skip
    if model == "pictures":
        new = ShardDataset(paths.sample_folder(root, "poses"), SAMPLES)
        fixed = [i for i in evenly_spaced(len(new), GRID) for _ in range(GRID)]
        asked_train = resampled(len(train), params.sample.train_conditions, choice.seed)
        asked = {
            SAMPLES: Conditions.of(held_out, rows),
            COMPARISON: Conditions.of(train, asked_train),
            NEW_POSES: Conditions.of(new, fixed),
        }
        if trained.model.text is not None:
            from_shards = {SAMPLES: (held_out, rows), COMPARISON: (train, asked_train), NEW_POSES: None}
            asked = {
                split: _with_text(root, trained.model.text, choice, conditions, train, from_shards[split])
                for split, conditions in asked.items()
            }
        drawn = draw_pictures(trained, choice, asked)
        if paths.UPSCALER in paths.trained_models(root):
            del trained  # one model in memory at a time
            about["upscaler_digest"] = _enlarge(params, root, drawn)
        side = max(TILE, drawn[NEW_POSES].shape[1])
        tiles = [drawing.smooth(picture, side) for picture in drawn[NEW_POSES]]
        beside = [drawing.draw_pose(pose, side) for pose in asked[NEW_POSES].pose[::GRID]]
        for row, pose in reversed(list(enumerate(beside))):
            tiles.insert(row * GRID, pose)
        columns, captions = GRID + 1, None
        samples = {
            split: list(picture_samples(choice, asked[split], pictures, split)) for split, pictures in drawn.items()
        }
    else:
        categories = [held_out.meta(i)["category"] for i in rows]
        poses = draw_poses(trained, choice, categories)
        samples = {SAMPLES: list(pose_samples(choice, categories, poses))}
        tiles, columns = [drawing.draw_pose(pose) for pose in poses[: GRID * GRID]], GRID
        captions = categories[: GRID * GRID]
    folder = paths.sample_folder(root, model)
    shards.write(folder, samples, choice.count, about)
    drawing.save_png(folder / paths.GRID, drawing.sheet(tiles, columns, captions))


def _with_text(
    root: Path,
    text: EmbeddedText,
    choice: Sample,
    asked: Conditions,
    shards: ShardDataset,
    source: tuple[ShardDataset, list[int]] | None,
) -> Conditions:
    """The conditions with the prompt of `choice`, or else with the captions of the samples of `source` that they are from.

    Without a source, the caption is the template with the category.
    """
    if choice.prompt is not None:
        embedded = embeddings(root, text.encoder, [choice.prompt])
        return asked.with_text([choice.prompt] * len(asked.key), embedded.repeat(len(asked.key), 0))
    template = text.encoder.template
    if source is None:
        captions = [captioned(template, category) for category in asked.category]
    else:
        dataset, rows = source
        captions = dataset.take(rows).captions(template)
    if not captions:
        return asked
    known = shards.about.get("text")
    if known is not None and known["sha256"] == text.encoder.sha256 and known["length"] == text.encoder.length:
        if set(captions) <= set(known["captions"]):
            return asked.with_text(captions, shards.texts_of(captions))
    return asked.with_text(captions, embeddings(root, text.encoder, captions))


def resampled(n: int, count: int, seed: int) -> list[int]:
    """`count` of n rows, drawn with replacement."""
    u = rng.uniform((), rng.fold(seed, 1), torch.arange(count))
    return [int(i) for i in (u * n).long()]


def pose_samples(choice: Sample, categories: list[str], poses: np.ndarray) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Poses in the format of the shards."""
    for i, (category, pose) in enumerate(zip(categories, poses, strict=True)):
        about = {
            "model": "poses", "category": category, "seed": choice.seed, "number": i, **_how(choice)
        }  # fmt: skip
        yield (
            f"poses-{choice.seed}-{i:06d}",
            {"pose.npy": shards.encode_pose(pose), "json": shards.encode_json(about)},
        )


def picture_samples(
    choice: Sample, asked: Conditions, pictures: np.ndarray, split: str
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Pictures in the format of the shards."""
    name = "pictures" if split == SAMPLES else f"pictures-{split}"
    for i, picture in enumerate(pictures):
        about = {
            "model": "pictures", "category": asked.category[i], "condition": asked.key[i], "seed": choice.seed,
            "number": i, **_how(choice),
        }  # fmt: skip
        if asked.caption is not None:
            about["caption"] = asked.caption[i]
        yield (
            f"{name}-{choice.seed}-{i:06d}",
            {
                "png": encode_png(picture),
                "pose.npy": shards.encode_pose(asked.pose[i]),
                "json": shards.encode_json(about),
            },
        )


def _how(choice: Sample) -> dict[str, Any]:
    """What the JSON of a sample says about how it was sampled."""
    return {"sampler": choice.sampler, "guidance": choice.guidance_json}


def draw_poses(model: Sampler, choice: Sample, categories: list[str]) -> np.ndarray:
    """Poses float32 `[n, 33, 3]` of these categories, numbered from 0."""
    conditions = {SAMPLES: (len(categories), model.model.conditions(categories))}
    return _in_batches(model, choice, conditions)[SAMPLES].numpy()


def draw_pictures(model: Sampler, choice: Sample, asked: Mapping[str, Conditions]) -> dict[str, np.ndarray]:
    """Pictures uint8 `[n, size, size, 3]` for the conditions of each split, numbered from 0."""
    side = model.model.shape[-1] * model.model.codec.factor
    conditions = {
        split: (len(some.key), model.model.conditions(some.category, some.pose, some.text))
        for split, some in asked.items()
        if some.key
    }
    drawn = _in_batches(model, choice, conditions)
    return {
        split: inputs.as_pictures(drawn[split]) if split in drawn else np.zeros((0, side, side, 3), np.uint8)
        for split in asked
    }


def _in_batches(model: Sampler, choice: Sample, conditions: Mapping[str, tuple[int, Cond]]) -> dict[str, Tensor]:
    """Samples in data units of each split: of so many samples, numbered from 0, and their conditions.

    They are decoded together: a codec's convolutions may round in another way for other numbers of pictures.
    """

    def latents(cond: Cond, ids: Tensor) -> np.ndarray:
        return model.latents(conditioning.rows(cond, ids), choice.seed, ids, choice.batch).cpu().numpy()

    wanted = {split: Wanted(count, partial(latents, cond)) for split, (count, cond) in conditions.items()}
    drawn = in_batches(wanted, choice.batch, f"sample {model.model.name}")
    return {split: model.decoded(torch.from_numpy(z), conditions[split][1]) for split, z in drawn.items()}


def _enlarge(params: Params, root: Path, drawn: dict[str, np.ndarray]) -> str:
    """Enlarge the pictures of all splits in place; returns the digest of the upscaler's training."""
    model = model_file.load(paths.model_folder(root, paths.UPSCALER), modality.device())
    for split, pictures in drawn.items():
        ids = torch.arange(len(pictures))
        seed = params.sample.pictures.seed
        drawn[split] = upscaler.upscale(model, pictures, params.sample.upscaler, seed, ids, f"upscale, {split}")
    digest: str = model.meta["digest"]
    return digest
