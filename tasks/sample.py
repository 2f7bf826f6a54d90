"""Stage `sample <model>`: new poses, or pictures of new poses, in `samples/<model>/`.

`samples.tar` and its index have the shards' format with one split, `samples`; each sample's JSON says its seed, its
category and, for a picture, the generated pose that it shows. `grid.png` is for looking.
A sample is a function of (model, seed, its number, its condition): neither the batch nor the count changes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from diffusion_core import rng
from diffusion_core.cond import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.guide import cfg
from diffusion_core.sample import generate
from tasks import artifacts, drawing, models
from tasks.dataset import shards
from tasks.dataset.pose_map import pose_map
from tasks.dataset.shards import ShardDataset
from tasks.errors import DataError
from tasks.models import Model
from tasks.params import Params, Sample

SPLIT = "samples"
GRID = 64  # samples in the picture


def run(params: Params, root: Path, model: str) -> None:
    """Draw the samples of one model; pictures are conditioned on the poses that the pose model generated."""
    choice: Sample = getattr(params.sample, model)
    trained = models.load(artifacts.folder(root, model), models.device())
    if model == "pictures":
        source = ShardDataset(root / "samples/poses", SPLIT)
        rows = np.arange(choice.count) % len(source)
        metas = source.metas()
        about = [{"category": metas[i]["category"], "condition": source.keys[i]} for i in rows]
        poses = source.pose()[rows]
        maps = pose_map(poses, trained.shape[-1], trained.margin)
        values = _draw(trained, choice, [row["category"] for row in about], maps)
        pictures = ((values.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        members = [
            {"png": shards.encode_png(p), "pose.npy": shards.encode_pose(q)}
            for p, q in zip(pictures, poses, strict=True)
        ]
        tiles = [_beside(pose, picture) for pose, picture in zip(poses[:GRID], pictures[:GRID], strict=True)]
    else:
        about = [{"category": name} for name in _held_out_categories(root, choice)]
        poses = _draw(trained, choice, [row["category"] for row in about], None).numpy()
        members = [{"pose.npy": shards.encode_pose(pose)} for pose in poses]
        tiles = [drawing.draw_pose(pose) for pose in poses[:GRID]]
    folder = root / "samples" / model
    origin = {"model": model, "model_digest": trained.meta["digest"], "categories": trained.categories}
    shards.write(folder, {SPLIT: _samples(model, choice, about, members)}, choice.count, origin)
    captions = [row["category"] for row in about[:GRID]]
    drawing.save_png(folder / "grid.png", drawing.sheet(tiles, 8, captions))


def _samples(
    model: str, choice: Sample, about: list[dict[str, str]], members: list[dict[str, bytes]]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i, (row, parts) in enumerate(zip(about, members, strict=True)):
        meta: dict[str, Any] = {**row, "model": model, "seed": choice.seed, "number": i, "guidance": choice.guidance}
        yield f"{model}-{choice.seed}-{i:06d}", {**parts, "json": shards.encode_json(meta)}


def _held_out_categories(root: Path, choice: Sample) -> list[str]:
    """Categories for the samples, drawn from the held-out persons (from the training set if nobody is held out)."""
    folder = root / "data/shards"
    held_out = [meta["category"] for split in ("val", "test") for meta in ShardDataset(folder, split).metas()]
    pool = held_out or [meta["category"] for meta in ShardDataset(folder, "train").metas()]
    u = rng.uniform((), rng.fold(choice.seed, 1), torch.arange(choice.count))
    return [pool[int(i)] for i in (u * len(pool)).long()]


def _draw(model: Model, choice: Sample, categories: list[str], maps: Tensor | None) -> Tensor:
    """Samples in data units, float32 `[count, *shape]`."""
    device = models.device()
    cond: Cond = {"vec:category": models.category_vector(categories, model.categories)}
    if maps is not None:
        cond["map:pose"] = maps
    cond = {key: value.to(device) for key, value in cond.items()}
    denoiser: Denoiser = model.denoiser if choice.guidance == 1 else cfg(model.denoiser, choice.guidance)
    ids = torch.arange(choice.count, device=device)
    with tqdm(desc=f"sample {model.name}", unit="step", mininterval=2) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        z = generate(
            denoiser, model.recipe.walk(choice.steps), model.recipe.step, model.shape, choice.seed, ids, cond,
            batch=choice.batch, progress=progress,
        )  # fmt: skip
    values = model.codec.decode(z).cpu()
    if not values.isfinite().all():
        raise DataError(f"The {model.name} model gives samples that are not finite: its training has failed.")
    return values


def _beside(pose: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The pose that was asked for, and the picture."""
    return np.concatenate([drawing.draw_pose(pose), drawing.enlarge(picture, 96)], axis=1)
