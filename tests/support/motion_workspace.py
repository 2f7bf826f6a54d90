"""A small workspace for motion: tiny parameters, and tables in which a person was tracked through a video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_core.codecs import Affine
from tasks import paths
from tasks.common import motion
from tasks.config.params import Params, load
from tasks.dataset import dataset_table, shards
from tasks.dataset.dataset_table import Gated, Persons
from tasks.extract.findings import Kind
from tasks.extract.poses_table import Pose
from tasks.models import modality, model_file
from tasks.models.modality import ClipShape
from tests.support import curation_workspace, workspaces

CLIP = ClipShape(8, 6.0)
TINY = {
    "width": 16, "depth": 1, "heads": 2, "images": 64, "batch": 16, "warmup_images": 16, "cooldown_images": 0,
    "ema_halflife_images": 32, "checkpoint_images": 32, "optimiser": "adamw", "learning_rate": 3e-3,
}  # fmt: skip


def params(root: Path, **changes: Any) -> Params:
    """`params.yaml` with tiny motion in `root`; changes as in `workspaces.write_params`."""
    tiny = {f"motion__model__{key}": value for key, value in TINY.items()}
    small = {
        "motion__animation__count": 30, "motion__animation__seconds": 1.25,
        "motion__clips__frames": 8, "motion__clips__rate": 6.0, "motion__clips__stride": 4,
        "motion__sample__count": 30, "motion__sample__steps": 4, "motion__sample__examples": 2, "motion__sample__overlap": 3,
    }  # fmt: skip
    return load(workspaces.write_params(root, **{**tiny, **small, **changes}))


def write_untrained(root: Path, params: Params, categories: list[str], images: int = 0) -> Path:
    """The folder of a model of motion that is not trained: it draws noise around standing people."""
    poses = np.stack([motion.features(workspaces.figure(np.random.default_rng(i), 0)[None])[0] for i in range(8)])
    codec = Affine.fit(torch.from_numpy(poses).float(), 0.5, True)
    torch.manual_seed(0)
    model = modality.build(paths.MOTION, params.motion.model, categories, codec, 0.0, clip=CLIP)
    folder = paths.model_folder(root, paths.MOTION)
    model_file.save(folder, model, dict(model.denoiser.state_dict()), {"digest": "0", "images": images})
    return folder


def write_clips(root: Path, categories: list[str]) -> None:
    """`data/clips` of figures that move their arms, two of each split."""

    def rows(split: str, seed: int) -> list[tuple[str, dict[str, bytes]]]:
        rng = np.random.default_rng(seed)
        samples = []
        for i in range(2):
            clip = np.repeat(workspaces.figure(rng, i % 2)[None], CLIP.frames, axis=0)
            clip[:, 13:23, 1] += np.linspace(0, 0.5, CLIP.frames)[:, None]
            meta = {"category": categories[i % len(categories)], "group": f"{split}{i}", "split": split, "rows": []}
            members = {"clip.npy": shards.encode_pose(motion.canonical(clip[None])[0].astype(np.float32))}
            samples.append((f"clip-{split}-{i:04d}", {**members, "json": shards.encode_json(meta)}))
        return samples

    splits = {split: rows(split, seed) for seed, split in enumerate(("train", "val", "test"))}
    shards.write(root / "data/clips", splits, 50, {"frames": CLIP.frames, "rate": CLIP.rate, "categories": categories})


def tracked(source: str, seconds: np.ndarray, visibility: float = 1.0, **changes: Any) -> list[Pose]:
    """One person in a video at these times, who bends the knees twice a second."""
    rows = []
    for i, time in enumerate(seconds.tolist()):
        pose = curation_workspace.person(
            0, key=f"{source.encode().hex()[:16]:0<16}-f{i:05d}", source=source, source_kind=Kind.VIDEO, category="bend",
            frame=i, timestamp_s=time, track=0, **changes,
        )  # fmt: skip
        pose.world[[25, 26], 2] -= 0.2 * np.sin(4 * np.pi * time)
        pose.landmarks[:, 3] = visibility
        rows.append(pose)
    return rows


def write(
    root: Path, rows: Sequence[Pose], kept: dict[str, tuple[str, str]] | None = None, gated: Sequence[Gated] = ()
) -> None:
    """`data/poses` with these rows, and a dataset that has a person of each source in `kept` (source -> group, split)."""
    curation_workspace.write(root, rows)
    sources = list(kept or {})
    n = len(sources)
    persons = Persons(
        key=[f"{i:016x}" for i in range(n)], source=sources, source_kind=["video"] * n, category=["bend"] * n,
        group=[kept[s][0] for s in sources] if kept else [], split=[kept[s][1] for s in sources] if kept else [],
        frame=np.zeros(n, np.int32), cluster=np.zeros(n, np.int32), crop=np.zeros((n, 3), np.int32),
        pose=np.zeros((n, 33, 3), np.float32),
    )  # fmt: skip
    (root / "data/dataset").mkdir(parents=True, exist_ok=True)
    dataset_table.write(root / "data/dataset", persons, gated)
