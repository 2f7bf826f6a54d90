"""The contract between extraction and everything after it: two Parquet files in `data/poses/<part>/`.

`poses.parquet` has one row per person found. `rejects.parquet` has one row per refused file, or refused frame of a video or
motion capture. Every picture or sampled frame is a pair (source, frame) that is in exactly one of the tables:
**frames in = distinct (source, frame) in poses + rows of rejects**. Every file of the part is the source of at least one row.

A `key` starts with the first 16 hexadecimal digits of the sha256 of the file's bytes. Videos and motion captures append
`-f<frame>`, and all persons of a frame but the first append `-<person>`: `0123456789abcdef-f00042-1`. Keys are unique within
a part: of several files with the same bytes, the first in order of `source` is kept and the others are rejects with the
reason `duplicate`.

A motion capture has poses but no picture: `width`, `height`, `bbox`, `fingerprint`, `thumbnail` and `person_pixels` are 0,
`sharpness` and `exposure` are NaN, and `landmarks` are x = y = z = 0 with a visibility of 1 if the joint is known or derived
from known joints, and 0 if it is a guess. `Poses.pictured` tells which rows have a picture.

Writing the same rows twice gives the same bytes: fixed order, fixed row groups, no time stamps.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.common import tables
from tasks.common.skeleton import LIMBS
from tasks.common.thumbnail import SIDE
from tasks.extract import perceptual_hash
from tasks.extract.findings import Finding, Kind, Reason


def _without_pandas() -> None:
    """Make pyarrow believe that pandas is too old, unless this process uses pandas already.

    pyarrow would import it with its first table, which takes more than a second and is not needed.
    """
    if "pandas" not in sys.modules:
        stand_in = ModuleType("pandas")
        stand_in.__version__ = "0"  # type: ignore[attr-defined]
        sys.modules["pandas"] = stand_in
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pa.array([])  # pyarrow looks for pandas here, and only once
        finally:
            del sys.modules["pandas"]


_without_pandas()

POSES = "poses.parquet"
REJECTS = "rejects.parquet"

_ROWS_PER_GROUP = 1024

_POSES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),  # path relative to the part's folder, with forward slashes
        ("source_kind", pa.string()),  # a Kind
        ("category", pa.string()),
        ("frame", pa.int32()),  # the frame's number in a video or motion capture, 0 for a picture
        ("timestamp_s", pa.float64()),  # of the frame, seconds from the start; 0 for a picture
        ("person", pa.int32()),  # 0, 1, ... within the frame
        ("track", pa.int32()),  # identifies a person within a video; -1 for a picture
        ("width", pa.int32()),  # of the upright picture (EXIF orientation applied), pixels
        ("height", pa.int32()),
        ("bbox", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1 around the 33 landmarks, pixels
        ("landmarks", pa.list_(pa.float32(), 33 * 5)),  # x, y, z, visibility, presence
        ("world", pa.list_(pa.float32(), 33 * 3)),  # metres, see tasks.common.skeleton
        ("limb_visibility", pa.float32()),  # mean over the 12 limb landmarks, 0..1
        ("person_pixels", pa.float32()),  # longer side of bbox
        ("truncation", pa.float32()),  # fraction of the 12 limb landmarks outside the picture
        ("sharpness", pa.float32()),  # variance of the Laplacian, see tasks.extract.people
        ("exposure", pa.float32()),  # mean luma of the person's box, 0 (black) .. 1 (white)
        ("fingerprint", pa.list_(pa.int8(), perceptual_hash.LENGTH)),  # of the whole picture
        ("thumbnail", pa.list_(pa.uint8(), SIDE**2)),  # of the whole picture, see tasks.common.thumbnail
    ]
)
_REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("frame", pa.int32()),  # null if the whole file is refused
        ("key", pa.string()),  # of the file; null if the file could not be read
        ("category", pa.string()),
        ("reason", pa.string()),  # a Reason
        ("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class Pose(Finding):
    """A row of `poses.parquet`: a finding and its file."""

    key: str
    source: str
    source_kind: Kind
    category: str


@dataclass(frozen=True)
class Reject:
    """A row of `rejects.parquet`: one refused file or frame."""

    source: str
    key: str | None
    category: str
    reason: Reason
    detail: str
    frame: int | None = None


@dataclass(frozen=True)
class Poses:
    """All rows of a `poses.parquet`, column by column; n persons in order of (source, frame, person)."""

    key: list[str]
    source: list[str]
    source_kind: list[str]
    category: list[str]
    frame: np.ndarray  # int32 [n]
    timestamp_s: np.ndarray  # float64 [n]
    person: np.ndarray  # int32 [n]
    track: np.ndarray  # int32 [n]
    size: np.ndarray  # int32 [n, 2]: width, height
    bbox: np.ndarray  # float32 [n, 4], pixels
    landmarks: np.ndarray  # float32 [n, 33, 5]
    world: np.ndarray  # float32 [n, 33, 3]
    limb_visibility: np.ndarray  # float32 [n]
    person_pixels: np.ndarray  # float32 [n]
    truncation: np.ndarray  # float32 [n]
    sharpness: np.ndarray  # float32 [n]
    exposure: np.ndarray  # float32 [n]
    fingerprint: np.ndarray  # int8 [n, 256]
    thumbnail: np.ndarray  # uint8 [n, 48, 48]

    def __len__(self) -> int:
        return len(self.key)

    @property
    def pixels(self) -> np.ndarray:
        """Image landmarks in pixels, float32 `[n, 33, 2]`; zeros if there is no picture."""
        pixels: np.ndarray = self.landmarks[..., :2] * self.size[:, None, :].astype(np.float32)
        return pixels

    @property
    def pictured(self) -> np.ndarray:
        """Which rows have a picture, bool `[n]`: all but motion captures."""
        has_picture: np.ndarray = self.size.min(axis=1, initial=1) > 0
        return has_picture


class Writer:
    """Writes both tables of a part row by row, in order and in bounded memory. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._poses: list[Pose] = []
        self._rejects: list[Reject] = []
        with contextlib.ExitStack() as stack:
            self._pose_file = stack.enter_context(_open(folder / POSES, _POSES_SCHEMA))
            self._reject_file = stack.enter_context(_open(folder / REJECTS, _REJECTS_SCHEMA))
            self._files = stack.pop_all()

    def add_pose(self, pose: Pose) -> None:
        self._poses.append(pose)
        if len(self._poses) == _ROWS_PER_GROUP:
            self._flush_poses()

    def add_reject(self, reject: Reject) -> None:
        self._rejects.append(reject)
        if len(self._rejects) == _ROWS_PER_GROUP:
            self._flush_rejects()

    def _flush_poses(self) -> None:
        self._pose_file.write_table(_pose_table(self._poses))
        self._poses = []

    def _flush_rejects(self) -> None:
        rows = self._rejects
        columns = [[getattr(row, name) for row in rows] for name in _REJECTS_SCHEMA.names]
        self._reject_file.write_table(pa.table(columns, schema=_REJECTS_SCHEMA))
        self._rejects = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._files:
            if kind is None:
                self._flush_poses()
                self._flush_rejects()


def read_poses(folder: Path) -> Poses:
    """The persons of a part. Raises DataError as `tables.read` does."""
    table = tables.read(folder / POSES, _POSES_SCHEMA, "extract")

    def array(name: str) -> np.ndarray:
        field, column = table.schema.field(name), table[name].combine_chunks()
        width = getattr(field.type, "list_size", 0)  # 0: one value a row
        values: np.ndarray = (column.flatten() if width else column).to_numpy(zero_copy_only=False)
        return values.reshape(len(table), width) if width else values

    text = {name: table[name].to_pylist() for name in ("key", "source", "source_kind", "category")}
    number: dict[str, np.ndarray] = {
        name: array(name) for name in _POSES_SCHEMA.names if name not in (*text, "width", "height")
    }
    number["landmarks"] = number["landmarks"].reshape(-1, 33, 5)
    number["world"] = number["world"].reshape(-1, 33, 3)
    number["thumbnail"] = number["thumbnail"].reshape(-1, SIDE, SIDE)
    columns: dict[str, Any] = {**text, **number, "size": np.stack([array("width"), array("height")], axis=1)}
    return Poses(**columns)


def read_rejects(folder: Path) -> list[Reject]:
    """The refused files and frames of a part. Raises DataError as `tables.read` does."""
    rows = tables.read(folder / REJECTS, _REJECTS_SCHEMA, "extract").to_pylist()
    return [Reject(**{**row, "reason": Reason(row["reason"])}) for row in rows]


def _pose_table(poses: list[Pose]) -> pa.Table:
    landmarks = np.array([pose.landmarks for pose in poses], np.float32).reshape(-1, 33, 5)
    size = np.array([(pose.width, pose.height) for pose in poses], np.float32).reshape(-1, 2)
    low, high = (extreme(landmarks[..., :2] * size[:, None], axis=1) for extreme in (np.min, np.max))
    limbs = landmarks[:, list(LIMBS)]
    arrays: dict[str, np.ndarray] = {
        "landmarks": landmarks,
        "world": np.array([pose.world for pose in poses], np.float32),
        "fingerprint": np.array([pose.fingerprint for pose in poses], np.int8),
        "thumbnail": np.array([pose.thumbnail for pose in poses], np.uint8),
        "bbox": np.concatenate([low, high], axis=1),
        "limb_visibility": limbs[..., 3].mean(axis=1),
        "person_pixels": (high - low).max(axis=1),
        "truncation": ((limbs[..., :2] < 0) | (limbs[..., :2] > 1)).any(axis=2).mean(axis=1, dtype=np.float32),
    }
    columns = []
    for field in _POSES_SCHEMA:
        width = getattr(field.type, "list_size", 0)  # 0: one value a row
        values = arrays.get(field.name)
        if values is None:
            columns.append(pa.array([getattr(pose, field.name) for pose in poses], type=field.type))
        elif width:
            columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width))
        else:
            columns.append(pa.array(values, type=field.type))
    return pa.table(columns, schema=_POSES_SCHEMA)


def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["category"], write_statistics=False)
