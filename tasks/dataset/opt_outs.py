"""Opt-outs: persons who asked to be taken out. They are recognised when they are delivered again.

`forgotten.json` in the workspace is versioned with the code; the stage `curate` depends on it. Each entry holds the key
(the file's content hash), the picture's fingerprint, the person's box in the picture, the pose, and a grey thumbnail of 48
pixels in which the heads are blank: enough to recognise the person in the same picture when it is re-encoded, resized,
mirrored, cropped, turned, recoloured or delivered in another part. The picture itself is not kept.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.common import files
from tasks.common.errors import UserError
from tasks.common.skeleton import embed, mirror, normalise
from tasks.common.thumbnail import SIDE
from tasks.dataset import near_duplicates
from tasks.dataset.dedup import SAME_PICTURE, SAME_POSE
from tasks.dataset.near_duplicates import aligned_boxes
from tasks.extract.perceptual_hash import LENGTH, mirrored
from tasks.extract.poses_table import Poses
from tasks.similarity.gallery import prepare
from tasks.similarity.near_pairs import near_pairs

FILE = "forgotten.json"
SIMILAR_PICTURE = 0.5  # cosine of two fingerprints from which on the same pose is the same person
SAME_PLACE = 0.5  # intersection over union of two boxes of one person in two files of one picture

_BLOCK = 64  # opt-outs compared with all rows at once


@dataclass(frozen=True)
class OptOut:
    """One row that was taken out."""

    key: str
    fingerprint: np.ndarray  # int8 [256]; zeros if there was no picture
    box: np.ndarray  # float32 [4]: x0, y0, x1, y1 as fractions of the picture's width and height
    pose: np.ndarray  # float16 [33, 3], normalised
    size: tuple[int, int]  # of the picture, pixels; (0, 0) in entries of older versions, which have no thumbnail
    thumbnail: np.ndarray  # uint8 [48, 48], see tasks.common.thumbnail; heads are blank


def of(table: Poses, rows: list[int]) -> list[OptOut]:
    """The opt-outs of these rows."""
    poses = normalise(table.world[rows]).astype(np.float16)
    boxes = _boxes(table)[rows]
    beside: dict[tuple[str, int], list[int]] = {}
    for i, place in enumerate(zip(table.source, table.frame.tolist(), strict=True)):
        beside.setdefault(place, []).append(i)
    return [
        OptOut(
            table.key[i],
            table.fingerprint[i],
            boxes[n],
            poses[n],
            (int(table.size[i, 0]), int(table.size[i, 1])),
            _without_heads(table, i, beside[table.source[i], int(table.frame[i])]),
        )
        for n, i in enumerate(rows)
    ]


def _without_heads(table: Poses, row: int, persons: list[int]) -> np.ndarray:
    """The row's thumbnail with a disc of one grey over the head of every person in the picture."""
    blank: np.ndarray = table.thumbnail[row].copy()
    if not table.pictured[row]:
        return blank
    at = (np.arange(SIDE) + 0.5) * (2 / SIDE) - 1
    for i in persons:
        points = aligned_boxes(np.tile(table.pixels[i], 2), np.repeat(table.size[i : i + 1], 33, axis=0))[:, :2]
        nose, ears = points[0], points[[7, 8]]
        radius = max(1.5 * np.linalg.norm(ears - nose, axis=1).max(), np.ptp(points, axis=0).max() / 16, 1 / SIDE)
        disc = (at[:, None] - nose[1]) ** 2 + (at - nose[0]) ** 2 <= radius**2
        if disc.any():
            blank[disc] = round(float(blank[disc].mean()))
    return blank


def read(root: Path) -> list[OptOut]:
    """The opt-outs of a workspace; none if there is no file. Raises UserError if the file cannot be understood."""
    path = root / FILE
    if not path.is_file():
        return []
    try:
        return [_decode(entry) for entry in json.loads(path.read_bytes())["forgotten"]]
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
            "size": list(one.size),
            "thumbnail": base64.b64encode(one.thumbnail.tobytes()).decode(),
        }
        for one in sorted(opt_outs, key=lambda one: one.key)
    ]
    files.write_json((root / FILE).resolve(), {"forgotten": entries})  # if it is a link, the file behind it


def _decode(entry: dict[str, Any]) -> OptOut:
    fingerprint = np.frombuffer(bytes.fromhex(entry["fingerprint"]), np.int8)
    pose = np.frombuffer(bytes.fromhex(entry["pose"]), "<f2").reshape(33, 3)
    if len(fingerprint) != LENGTH:
        raise ValueError(f"a fingerprint of {len(fingerprint)} numbers")
    width, height = entry.get("size", (0, 0))
    thumbnail = np.zeros((SIDE, SIDE), np.uint8)
    if "thumbnail" in entry:
        thumbnail = np.frombuffer(base64.b64decode(entry["thumbnail"], validate=True), np.uint8).reshape(SIDE, SIDE)
    box = np.array(entry["box"], np.float32).reshape(4)
    return OptOut(str(entry["key"]), fingerprint, box, pose, (int(width), int(height)), thumbnail)


def match(table: Poses, opt_outs: list[OptOut], limit: float) -> dict[int, str]:
    """Row -> key of the opt-out, for the rows that show a person who was taken out.

    A row matches by its key; by the same picture (mirrored or not) with the person in the same place; or by a similar picture
    and the same pose. Pictures are the same by their fingerprints (see `dedup`), or, cropped, turned or recoloured, by a
    distance of at most `limit` after alignment (see `near_duplicates`); 0 switches the alignment off.
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
            same = (cosines >= SAME_PICTURE) & (_overlaps(view_boxes, row_boxes) >= SAME_PLACE)
            distance = np.linalg.norm(embed(view_poses)[:, None] - row_poses, axis=2)
            same |= (cosines >= SIMILAR_PICTURE) & (distance <= SAME_POSE)
            for number, i in np.argwhere(same).tolist():
                matched.setdefault(i, block[number].key)
    pictured = [one for one in opt_outs if one.thumbnail.any()]
    if limit and pictured:
        for i, number in _aligned(table, pictured, limit):
            matched.setdefault(i, pictured[number].key)
    return matched


def _aligned(table: Poses, opt_outs: list[OptOut], limit: float) -> list[tuple[int, int]]:
    """(row, number of the opt-out) for rows whose picture, laid over that of the opt-out, has the person in the same place."""
    these = near_duplicates.pictures(table, list(range(len(table))))
    sizes = np.array([one.size for one in opt_outs])
    references = prepare(np.array([one.thumbnail for one in opt_outs]), sizes)
    pairs = near_pairs(these.gallery, references, near_duplicates.WHOLE * limit)
    picture, opted_out = pairs.query.numpy(), pairs.reference.numpy()
    # one pair for each person in the picture
    shown = [np.flatnonzero(these.of_row == number) for number in picture]
    pair = np.repeat(np.arange(len(picture)), [len(rows) for rows in shown])
    row = np.concatenate([np.zeros(0, np.int64), *shown])
    boxes = aligned_boxes(table.bbox[row], table.size[row])
    theirs = aligned_boxes(np.array([one.box for one in opt_outs]) * np.tile(sizes, 2), sizes)[opted_out[pair]]
    of_persons = pairs.at(torch.from_numpy(pair))
    persons = torch.from_numpy(boxes), torch.from_numpy(theirs)
    same_place = _overlap(near_duplicates.moved(persons[0], of_persons).numpy(), theirs) >= SAME_PLACE
    measured = near_duplicates.with_persons(these.gallery, references, of_persons, persons)
    near = np.flatnonzero(same_place & (measured.distance.numpy() <= limit))
    return [(int(row[at]), int(opted_out[pair[at]])) for at in near]


def _unit(fingerprints: np.ndarray) -> np.ndarray:
    """Fingerprints `[n, 256]` scaled to length 1; zeros stay zeros."""
    x = fingerprints.astype(np.float32)
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1)
    return unit


def _boxes(table: Poses) -> np.ndarray:
    """The persons' boxes as fractions of the picture, float32 `[n, 4]`."""
    boxes: np.ndarray = table.bbox / np.maximum(np.tile(table.size, 2), 1).astype(np.float32)
    return boxes


def _overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union `[n, m]` of all pairs of boxes `[n, 4]` and `[m, 4]`."""
    return _overlap(a[:, None], b[None])


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union `[...]` of boxes `[..., 4]`; 0 for boxes without area."""
    shared = np.maximum(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0).prod(axis=-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b)]
    union = areas[0] + areas[1] - shared
    ratio: np.ndarray = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return ratio
