"""Tombstones: who was taken out, kept so that nobody comes back with the next delivery.

`forgotten.json` in the workspace is versioned with the code (it is text, and the stage `curate` depends on it). For each
row that was taken out it holds the key (the file's content hash), the picture's fingerprint, where in the picture the
person was, and the pose: just enough to know the same person in the same picture again, re-encoded, resized, mirrored or
in another part, and no picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.skeleton import embed, mirror, normalise
from tasks.dataset.dedup import SAME_PICTURE, SAME_POSE, SAME_SCENE
from tasks.extract.perceptual_hash import LENGTH, mirrored
from tasks.extract.poses_table import Poses

FILE = "forgotten.json"
SAME_PLACE = 0.5  # intersection over union of two boxes of one person in two files of one picture

_BLOCK = 64  # tombstones compared at once with all rows


@dataclass(frozen=True)
class Tombstone:
    """One row that was taken out."""

    key: str
    fingerprint: np.ndarray  # int8 [256]; zeros where there was no picture
    box: np.ndarray  # float32 [4]: x0, y0, x1, y1 in parts of the picture's width and height
    pose: np.ndarray  # float16 [33, 3], normalised


def of(found: Poses, rows: list[int]) -> list[Tombstone]:
    """The tombstones of these rows."""
    poses = normalise(found.world[rows]).astype(np.float16)
    boxes = _boxes(found)[rows]
    return [Tombstone(found.key[i], found.fingerprint[i], boxes[n], poses[n]) for n, i in enumerate(rows)]


def read(root: Path) -> list[Tombstone]:
    """The tombstones of a workspace; none if there is no file. Raises UserError if the file is not one of ours."""
    path = root / FILE
    if not path.is_file():
        return []
    try:
        return [_decode(entry) for entry in files.read_json(path)["forgotten"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); take it from the version control again.") from error


def write(root: Path, tombstones: list[Tombstone]) -> None:
    """Replace the file, in order of the keys: the same tombstones are the same bytes."""
    entries = [
        {
            "key": one.key,
            "fingerprint": one.fingerprint.tobytes().hex(),
            "box": [round(float(x), 4) for x in one.box],
            "pose": one.pose.astype("<f2").tobytes().hex(),
        }
        for one in sorted(tombstones, key=lambda one: one.key)
    ]
    files.write_json(root / FILE, {"forgotten": entries})


def _decode(entry: dict[str, Any]) -> Tombstone:
    fingerprint = np.frombuffer(bytes.fromhex(entry["fingerprint"]), np.int8)
    pose = np.frombuffer(bytes.fromhex(entry["pose"]), "<f2").reshape(33, 3)
    if len(fingerprint) != LENGTH:
        raise ValueError(f"a fingerprint of {len(fingerprint)} numbers")
    return Tombstone(str(entry["key"]), fingerprint, np.array(entry["box"], np.float32).reshape(4), pose)


def match(found: Poses, tombstones: list[Tombstone]) -> dict[int, str]:
    """Row -> key of the tombstone, for the rows that show somebody who was taken out.

    A row matches by its key; by the same picture (mirrored or not) with the person at the same place; or, for a part of
    the picture, by a similar picture and the same pose. See `duplicates` for what counts as the same.
    """
    keys = {one.key for one in tombstones}
    matched = {i: key for i, key in enumerate(found.key) if key in keys}
    if not tombstones or not len(found):
        return matched
    fingerprints, boxes, poses = _unit(found.fingerprint), _boxes(found), embed(normalise(found.world))
    for start in range(0, len(tombstones), _BLOCK):
        block = tombstones[start : start + _BLOCK]
        prints = np.array([one.fingerprint for one in block])
        places = np.array([one.box for one in block])
        stances = np.array([one.pose for one in block], np.float32)
        turned = places[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
        for seen, where, how in ((prints, places, stances), (mirrored(prints), turned, mirror(stances))):
            cosines = _unit(seen) @ fingerprints.T  # [block, n]
            same = (cosines >= SAME_PICTURE) & (_overlap(where, boxes) >= SAME_PLACE)
            apart = np.linalg.norm(embed(how)[:, None] - poses, axis=2)
            same |= (cosines >= SAME_SCENE) & (apart <= SAME_POSE)
            for t, i in np.argwhere(same).tolist():
                matched.setdefault(i, block[t].key)
    return matched


def _unit(fingerprints: np.ndarray) -> np.ndarray:
    x = fingerprints.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)


def _boxes(found: Poses) -> np.ndarray:
    """The persons' boxes in parts of the picture, float32 `[n, 4]`."""
    return found.bbox / np.maximum(np.tile(found.size, 2), 1).astype(np.float32)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union `[n, m]` of boxes `[n, 4]` and `[m, 4]`; 0 for boxes without area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
