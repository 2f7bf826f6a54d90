"""A small workspace with known shards and samples, for the tests of the evaluation stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tasks.common import skeleton
from tasks.common.images import encode_png
from tasks.dataset import shards

LEFT_SIDE = {
    "hip": (0.18, 0.0, 0.0),
    "shoulder": (0.3, -1.0, 0.0),
    "elbow": (0.45, -0.5, 0.05),
    "wrist": (0.5, 0.0, -0.1),
    "knee": (0.2, 0.8, -0.05),
    "ankle": (0.2, 1.6, 0.0),
    "heel": (0.2, 1.65, 0.05),
    "foot_index": (0.22, 1.7, -0.2),
    "pinky": (0.51, 0.1, -0.1),
    "index": (0.5, 0.12, -0.12),
    "thumb": (0.48, 0.08, -0.12),
    "ear": (0.12, -1.35, 0.0),
    "eye_inner": (0.03, -1.4, -0.15),
    "eye": (0.05, -1.4, -0.15),
    "eye_outer": (0.07, -1.4, -0.14),
}


def standing() -> np.ndarray:
    """A standing person, float64 `[33, 3]`, faces the camera."""
    pose = np.zeros((33, 3))
    for name, (x, y, z) in LEFT_SIDE.items():
        pose[skeleton.INDEX[f"left_{name}"]] = x, y, z
        pose[skeleton.INDEX[f"right_{name}"]] = -x, y, z
    pose[skeleton.INDEX["mouth_left"]] = 0.04, -1.25, -0.15
    pose[skeleton.INDEX["mouth_right"]] = -0.04, -1.25, -0.15
    pose[skeleton.INDEX["nose"]] = 0, -1.33, -0.2
    return pose


def poses(n: int, seed: int) -> np.ndarray:
    """`n` people around `standing` on a curved manifold of dimension 10: float32 `[n, 33, 3]`, normalised."""
    directions = np.random.default_rng(99).normal(0, 0.025, (10, 33, 3))
    rng = np.random.default_rng(seed)
    moved = standing() + np.tensordot(np.sin(rng.normal(size=(n, 10))), directions, 1)
    return skeleton.normalise(moved + rng.normal(0, 0.003, moved.shape)).astype(np.float32)


def picture(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The skeleton drawn in random colours before a random background: uint8 `[64, 64, 3]`."""
    coarse = rng.integers(60, 256, (3, 3, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    colours = [tuple(int(c) for c in rng.integers(0, 160, 3)) for _ in range(3)]
    points = pose[:, :2] * 14 + (32 + rng.normal(0, 1.5), 30 + rng.normal(0, 1.5))
    for bone, (a, b) in enumerate(skeleton.BONES):
        draw.line([tuple(points[a]), tuple(points[b])], fill=colours[bone % 3], width=3)
    return np.asarray(image)


def pictures(some: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`picture` of each pose: uint8 `[n, 64, 64, 3]`."""
    return np.array([picture(pose, rng) for pose in some], np.uint8).reshape(-1, 64, 64, 3)


def _rows(prefix: str, some: np.ndarray, pictures: np.ndarray | None, **about: Any) -> Iterator[tuple[str, dict]]:
    for i, pose in enumerate(some):
        key = f"{prefix}{i:05d}"
        meta = {"category": "stand", "group": key, "source": f"{key}.png", "side": 64, **about}
        members = {"pose.npy": shards.encode_pose(pose), "json": shards.encode_json(meta)}
        if pictures is not None:
            members["png"] = encode_png(pictures[i])
        yield key, members


def make(
    root: Path,
    train: int,
    val: int,
    test: int,
    sampled_poses: int,
    sampled_pictures: int,
    copied: int = 0,
    copied_on_demand: int = 0,
) -> None:
    """Write data/shards, samples/{poses,pictures} and the poses read in the latter.

    The first `copied` samples are near copies of training items, the pictures mirrored. `copied_on_demand`: pictures that
    were asked for with training conditions, all of them copies.
    """
    rng = np.random.default_rng(0)
    sets = {"train": poses(train, 1), "val": poses(val, 2), "test": poses(test, 3)}
    drawn = {name: pictures(some, rng) for name, some in sets.items()}
    rows = {name: _rows(name, some, drawn[name]) for name, some in sets.items()}
    shards.write(root / "data/shards", rows, 1000, {"categories": ["stand"], "margin": 0.15})
    new = poses(sampled_poses, 4)
    new[:copied] = sets["train"][:copied] + rng.normal(0, 0.001, (copied, 33, 3))
    shards.write(root / "samples/poses", {"samples": _rows("pose", new, None)}, 1000, {})
    asked = poses(sampled_pictures, 5)
    shown = pictures(asked, rng)
    shown[:copied] = drawn["train"][:copied, :, ::-1]
    known = slice(copied_on_demand)
    demanded = _rows("demanded", sets["train"][known], drawn["train"][known], condition="train00000")
    splits = {"samples": _rows("picture", asked, shown), "train_conditions": demanded}
    shards.write(root / "samples/pictures", splits, 1000, {})
    read = asked.copy()  # the landmarker misses only the last person
    read[-1:] = np.nan
    (root / "reports/pose_accuracy").mkdir(parents=True, exist_ok=True)
    keys = np.array([f"picture{i:05d}" for i in range(len(asked))], str)
    np.savez(root / "reports/pose_accuracy/read.npz", key=keys, pose=read)
