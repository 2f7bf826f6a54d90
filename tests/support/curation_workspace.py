"""A small workspace after extraction: pictures and the poses table of known persons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.common import files
from tasks.common.thumbnail import thumbnail
from tasks.extract.findings import Kind
from tasks.extract.perceptual_hash import fingerprint
from tasks.extract.poses_table import Pose, Reject, Writer
from tasks.extract.stage import provenance
from tests.support import evaluation_workspace

SIZE = 96  # pixels of a picture
PART = "mannequin"
MOVED = [13, 14, 15, 16, 25, 26]  # elbows, wrists, knees


def picture(number: int) -> np.ndarray:
    """Picture `number`, uint8 `[96, 96, 3]`: coarse noise, unlike any other."""
    coarse = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def person(number: int, **changes: Any) -> Pose:
    """Person `number` in the middle of its picture, sharp and well lit, labelled `calm` or `wild`."""
    world = evaluation_workspace.poses(1, 1000 + number)[0] * 0.5
    world[MOVED] += np.random.default_rng(number).normal(scale=0.12, size=(len(MOVED), 3))  # all poses differ
    landmarks = np.ones((33, 5), np.float32)
    landmarks[:, :2] = 0.5 + world[:, :2] / 2.5
    landmarks[:, 2] = 0
    values: dict[str, Any] = {
        "key": f"{number:016x}", "source": f"{('calm', 'wild')[number % 2]}/{number:04d}.png", "source_kind": Kind.PICTURE,
        "category": ("calm", "wild")[number % 2], "frame": 0, "timestamp_s": 0.0, "person": 0, "track": -1, "width": SIZE,
        "height": SIZE, "landmarks": landmarks, "world": world, "sharpness": 500.0, "exposure": 0.5,
        "fingerprint": fingerprint(picture(number)), "thumbnail": thumbnail(picture(number)),
    }  # fmt: skip
    return Pose(**{**values, **changes})


def part_of(number: int, left: int, top: int, side: int, **changes: Any) -> Pose:
    """Person `number` in a square part of the picture, which starts at (left, top); its file is not written."""
    cut = picture(number)[top : top + side, left : left + side]
    landmarks = person(number).landmarks.copy()
    landmarks[:, :2] = (landmarks[:, :2] * SIZE - [left, top]) / side
    return person(
        number, key="f" * 16, source="wild/part.png", width=side, height=side, landmarks=landmarks,
        fingerprint=fingerprint(cut), thumbnail=thumbnail(cut), **changes,
    )  # fmt: skip


def motion(number: int, source: str = "walk.bvh", **changes: Any) -> Pose:
    """A person without a picture: frame `number` of a motion capture."""
    return person(
        number, key=f"{source.encode().hex():0<16}-f{number:05d}", source=source, source_kind=Kind.MOCAP, frame=number,
        category="walk", track=0, width=0, height=0, sharpness=float("nan"), exposure=float("nan"),
        landmarks=np.concatenate([np.zeros((33, 3)), np.ones((33, 2))], axis=1).astype(np.float32),
        fingerprint=np.zeros(256, np.int8), thumbnail=np.zeros((48, 48), np.uint8), **changes,
    )  # fmt: skip


def write(root: Path, persons: Sequence[Pose], rejects: Iterable[Reject] = ()) -> None:
    """Write `data/poses/mannequin` as the extract stage does, and the missing picture files of its rows."""
    folder = root / "data/poses" / PART
    raw = root / "data/raw" / PART
    folder.mkdir(parents=True, exist_ok=True)
    with Writer(folder) as tables:
        for row in sorted(persons, key=lambda row: (row.source, row.frame, row.person)):
            tables.add_pose(row)
            path = raw / row.source
            if row.source_kind is Kind.PICTURE and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(int(row.key[:16], 16))).save(path)
        for reject in rejects:
            tables.add_reject(reject)
    files.write_json(folder / "summary.json", {"files": len(persons), "rejects": {}})
    files.write_json(folder / "provenance.json", provenance(raw))
