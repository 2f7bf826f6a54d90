"""Opt-outs: persons who asked to be taken out. They are recognised when they are delivered again.

`forgotten.json` in the workspace is versioned with the code; the stage `curate` depends on it. Each entry holds the key
(the file's content hash), the picture's fingerprint, the person's box in the picture, and the pose: enough to recognise
the person in the same picture when it is re-encoded, resized, mirrored or delivered in another part. No picture is kept.
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

_BLOCK = 64  # opt-outs compared with all rows at once


@dataclass(frozen=True)
class OptOut:
    """One row that was taken out."""

    key: str
    fingerprint: np.ndarray  # int8 [256]; zeros if there was no picture
    box: np.ndarray  # float32 [4]: x0, y0, x1, y1 as fractions of the picture's width and height
    pose: np.ndarray  # float16 [33, 3], normalised


def of(table: Poses, rows: list[int]) -> list[OptOut]:
    """The opt-outs of these rows."""
    poses = normalise(table.world[rows]).astype(np.float16)
    boxes = _boxes(table)[rows]
    return [OptOut(table.key[i], table.fingerprint[i], boxes[n], poses[n]) for n, i in enumerate(rows)]


def read(root: Path) -> list[OptOut]:
    """The opt-outs of a workspace; none if there is no file. Raises UserError if the file cannot be understood."""
    path = root / FILE
    if not path.is_file():
        return []
    try:
        return [_decode(entry) for entry in files.read_json(path)["forgotten"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); restore it from version control.") from error


def write(root: Path, opt_outs: list[OptOut]) -> None:
    """Replace the file. Entries are sorted by key, so the same opt-outs give the same bytes."""
    entries = [
        {
            "key": one.key,
            "fingerprint": one.fingerprint.tobytes().hex(),
            "box": [round(float(x), 4) for x in one.box],
            "pose": one.pose.astype("<f2").tobytes().hex(),
        }
        for one in sorted(opt_outs, key=lambda one: one.key)
    ]
    files.write_json(root / FILE, {"forgotten": entries})


def _decode(entry: dict[str, Any]) -> OptOut:
    fingerprint = np.frombuffer(bytes.fromhex(entry["fingerprint"]), np.int8)
    pose = np.frombuffer(bytes.fromhex(entry["pose"]), "<f2").reshape(33, 3)
    if len(fingerprint) != LENGTH:
        raise ValueError(f"a fingerprint of {len(fingerprint)} numbers")
    return OptOut(str(entry["key"]), fingerprint, np.array(entry["box"], np.float32).reshape(4), pose)


def match(table: Poses, opt_outs: list[OptOut]) -> dict[int, str]:
    """Row -> key of the opt-out, for the rows that show a person who was taken out.

    A row matches by its key; by the same picture (mirrored or not) with the person in the same place; or, if only a part
    of the picture is delivered, by a similar picture and the same pose. The limits are those of `dedup`.
    """
    keys = {one.key for one in opt_outs}
    matched = {i: key for i, key in enumerate(table.key) if key in keys}
    if not opt_outs or not len(table):
        return matched
    row_fingerprints, row_boxes, row_poses = _unit(table.fingerprint), _boxes(table), embed(normalise(table.world))
    for start in range(0, len(opt_outs), _BLOCK):
        block = opt_outs[start : start + _BLOCK]
        fingerprints = np.array([one.fingerprint for one in block])
        boxes = np.array([one.box for one in block])
        poses = np.array([one.pose for one in block], np.float32)
        mirrored_boxes = boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [1, 0, 1, 0]
        views = ((fingerprints, boxes, poses), (mirrored(fingerprints), mirrored_boxes, mirror(poses)))
        for view_fingerprints, view_boxes, view_poses in views:
            cosines = _unit(view_fingerprints) @ row_fingerprints.T  # [block, n]
            same = (cosines >= SAME_PICTURE) & (_overlap(view_boxes, row_boxes) >= SAME_PLACE)
            distance = np.linalg.norm(embed(view_poses)[:, None] - row_poses, axis=2)
            same |= (cosines >= SAME_SCENE) & (distance <= SAME_POSE)
            for number, i in np.argwhere(same).tolist():
                matched.setdefault(i, block[number].key)
    return matched


def _unit(fingerprints: np.ndarray) -> np.ndarray:
    """Fingerprints `[n, 256]` scaled to length 1; zeros stay zeros."""
    x = fingerprints.astype(np.float32)
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    return unit


def _boxes(table: Poses) -> np.ndarray:
    """The persons' boxes as fractions of the picture, float32 `[n, 4]`."""
    boxes: np.ndarray = table.bbox / np.maximum(np.tile(table.size, 2), 1).astype(np.float32)
    return boxes


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union `[n, m]` of boxes `[n, 4]` and `[m, 4]`; 0 for boxes without area."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1] - shared
    ratio: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio
