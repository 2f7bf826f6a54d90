"""A small workspace for clips of pictures: tiny parameters, and clips of coarse figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import paths
from tasks.common import motion
from tasks.config.params import Params, load
from tasks.dataset import frames, shards
from tasks.models import modality, model_file
from tasks.train import video as training
from tests.support import workspaces
from tests.support.motion_workspace import TINY

FRAMES = 4
RATE = 12.0
SIZE = 16  # pixels


def params(root: Path, **changes: Any) -> Params:
    """`params.yaml` with tiny clips in `root`; changes as in `workspaces.write_params`."""
    model = {key: value for key, value in TINY.items() if key not in ("width", "depth", "heads")}
    small = {f"video__model__{key}": value for key, value in model.items()} | {
        "video__model__stills": 2, "video__clips__frames": FRAMES, "video__clips__size": SIZE, "video__film__count": 12,
        "video__sample__count": 4, "video__sample__motions": 2, "video__sample__apart": 2, "video__sample__steps": 3,
        "motion__run": ["motion"], "video__run": ["video"],
    }  # fmt: skip
    return load(workspaces.write_params(root, **{**small, **changes}))


def write_untrained(root: Path, params: Params, categories: list[str]) -> Path:
    """The folder of a model of clips that is not trained, but has random weights; `artifacts/pictures` has to be there."""
    config, codec = training.config_of(params, root), training.codec(root)
    model = modality.build(paths.VIDEO, config, categories, codec, 0.08, clip=modality.ClipShape(FRAMES, RATE))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    folder = paths.model_folder(root, paths.VIDEO)
    model_file.save(folder, model, dict(model.denoiser.state_dict()), {"digest": "0", "images": 0})
    return folder


def write_clips(root: Path, train: int = 12, val: int = 4) -> None:
    """`data/video` of figures that move their arms, in two categories of which the dataset has one."""

    def rows(split: str, count: int, seed: int) -> list[tuple[str, dict[str, bytes]]]:
        rng = np.random.default_rng(seed)
        samples = []
        for i in range(count):
            clip = np.repeat(workspaces.figure(rng, i % 2)[None], FRAMES, axis=0)
            clip[:, 13:23, 1] += np.linspace(0, 0.5, FRAMES)[:, None]
            meta = {
                "category": ("calm", "walk")[i % 2],
                "group": f"g{split}{i}",
                "source": f"{split}{i}",
                "split": split,
                "rows": [],
            }
            pictures = np.stack([workspaces.picture(pose, SIZE) for pose in clip])
            members = {"frames.npy": frames.encode(pictures), "clip.npy": shards.encode_pose(clip)}
            samples.append((f"clip-{split}-{i:04d}", {**members, "json": shards.encode_json(meta)}))
        return samples

    splits = {
        split: rows(split, n, seed) for seed, (split, n) in enumerate({"train": train, "val": val, "test": 2}.items())
    }
    about = {
        "categories": ["calm", "walk"], "parts": ["figures"], "frames": FRAMES, "rate": RATE, "size": SIZE, "margin": 0.08,
        "refused": {}, "sources": [],
    }  # fmt: skip
    shards.write(root / "data/video", splits, 50, about)


def write_motion(root: Path, count: int = 3) -> None:
    """`samples/motion` of figures that turn about themselves, twelve frames at 12 a second."""
    rng = np.random.default_rng(5)
    samples = []
    for i in range(count):
        pose = workspaces.figure(rng, 0)
        clip = motion.turned(np.repeat(pose[None], 12, axis=0), np.linspace(0, 1, 12)).astype(np.float32)
        members = {"clip.npy": shards.encode_pose(clip), "json": shards.encode_json({"category": "walk"})}
        samples.append((f"motion-0-{i:06d}", members))
    shards.write(root / "samples/motion", {"samples": samples}, 10, {"frames": 12, "rate": RATE})
