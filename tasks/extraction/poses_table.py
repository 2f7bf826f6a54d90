"""The contract between extraction and everything after it: two Parquet files in `data/poses/<part>/`.

`poses.parquet` has one row a person found, `rejects.parquet` one row a file refused. No file is in both, and
every file of the part is in one: **sources in = distinct sources in poses + rows of rejects**.

A row's `key` is the first 16 hexadecimal digits of the sha256 of the file's bytes; a second person in one
picture would be `<digits>-1`, a third `<digits>-2`. A key is unique within a part: of several files with the
same bytes the first in order of `source` is kept, the others are rejects with the reason `duplicate`.

Files are byte-identical when written twice from the same rows: fixed order, fixed row groups, no time stamp.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.skeleton import LIMBS

POSES = "poses.parquet"
REJECTS = "rejects.parquet"

_ROWS_PER_GROUP = 1024

_POSES_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),  # path relative to the part's folder, with forward slashes
        ("frame", pa.int32()),  # 0 for a picture; the frame's number in a video
        ("category", pa.string()),
        ("width", pa.int32()),  # of the picture as seen (after its EXIF orientation), pixels
        ("height", pa.int32()),
        ("bbox", pa.list_(pa.float32(), 4)),  # x0, y0, x1, y1 around the 33 landmarks, pixels
        ("landmarks", pa.list_(pa.float32(), 33 * 5)),  # x, y, z, visibility, presence
        ("world", pa.list_(pa.float32(), 33 * 3)),  # metres, see tasks.skeleton
        ("limb_visibility", pa.float32()),
        ("phash", pa.uint64()),
        ("phash_mirrored", pa.uint64()),
    ]
)
_REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("key", pa.string()),  # null where the file could not be read
        ("category", pa.string()),
        ("reason", pa.string()),  # a Reason
        ("detail", pa.string()),
    ]
)


class Reason(StrEnum):
    """Why a file gave no row of poses: the closed list."""

    UNREADABLE = "unreadable"  # the system would not open it, or it is a link or not a regular file
    NOT_A_PICTURE = "not_a_picture"  # no decoder knows it
    DAMAGED = "damaged"  # truncated or corrupt
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"  # claims more pixels than is sane to decode
    NO_PERSON = "no_person"
    DUPLICATE = "duplicate"  # the same bytes as an earlier file in which somebody was found


@dataclass(frozen=True)
class Pose:
    """One person found: a row of `poses.parquet`."""

    key: str
    source: str
    frame: int
    category: str
    width: int
    height: int
    landmarks: np.ndarray  # float32 [33, 5]: x/width, y/height, z/width, visibility, presence
    world: np.ndarray  # float32 [33, 3], metres
    phash: int
    phash_mirrored: int

    @property
    def bbox(self) -> np.ndarray:
        """Smallest box around the landmarks, float32 `[4]`: x0, y0, x1, y1, pixels; may leave the picture."""
        xy = self.landmarks[:, :2] * np.array([self.width, self.height], dtype=np.float32)
        return np.concatenate([xy.min(axis=0), xy.max(axis=0)])

    @property
    def limb_visibility(self) -> float:
        """Mean visibility of the 12 limb landmarks, in 0..1."""
        return float(self.landmarks[list(LIMBS), 3].mean())


@dataclass(frozen=True)
class Reject:
    """One file refused: a row of `rejects.parquet`."""

    source: str
    key: str | None
    category: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Poses:
    """All rows of a `poses.parquet`, column by column; n persons in order of (source, person)."""

    key: list[str]
    source: list[str]
    category: list[str]
    frame: np.ndarray  # int32 [n]
    size: np.ndarray  # int32 [n, 2]: width, height
    bbox: np.ndarray  # float32 [n, 4], pixels
    landmarks: np.ndarray  # float32 [n, 33, 5]
    world: np.ndarray  # float32 [n, 33, 3]
    limb_visibility: np.ndarray  # float32 [n]
    phash: np.ndarray  # uint64 [n]
    phash_mirrored: np.ndarray  # uint64 [n]

    def __len__(self) -> int:
        return len(self.key)

    @property
    def pixels(self) -> np.ndarray:
        """Image landmarks in pixels, float32 `[n, 33, 2]`."""
        return self.landmarks[..., :2] * self.size[:, None, :].astype(np.float32)


class Writer:
    """Writes both files of a part row by row, memory bounded, order kept. A context manager."""

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
    """The persons of a part; raises UserError if the file is missing or has other columns."""
    table = _read(folder / POSES, _POSES_SCHEMA)

    def array(name: str, *shape: int) -> np.ndarray:
        column = table[name].combine_chunks()
        values = column.flatten() if shape else column
        return values.to_numpy(zero_copy_only=False).reshape(len(table), *shape)

    return Poses(
        key=table["key"].to_pylist(),
        source=table["source"].to_pylist(),
        category=table["category"].to_pylist(),
        frame=array("frame"),
        size=np.stack([array("width"), array("height")], axis=1),
        bbox=array("bbox", 4),
        landmarks=array("landmarks", 33, 5),
        world=array("world", 33, 3),
        limb_visibility=array("limb_visibility"),
        phash=array("phash"),
        phash_mirrored=array("phash_mirrored"),
    )


def read_rejects(folder: Path) -> list[Reject]:
    """The refused files of a part; raises UserError if the file is missing or has other columns."""
    rows = _read(folder / REJECTS, _REJECTS_SCHEMA).to_pylist()
    return [Reject(**{**row, "reason": Reason(row["reason"])}) for row in rows]


def _pose_table(poses: list[Pose]) -> pa.Table:
    vectors = {
        "bbox": np.array([pose.bbox for pose in poses], dtype=np.float32),
        "landmarks": np.array([pose.landmarks for pose in poses], dtype=np.float32),
        "world": np.array([pose.world for pose in poses], dtype=np.float32),
    }
    columns = []
    for field in _POSES_SCHEMA:
        if field.name in vectors:
            flat = pa.array(vectors[field.name].reshape(-1))
            columns.append(pa.FixedSizeListArray.from_arrays(flat, field.type.list_size))
        else:
            columns.append(pa.array([getattr(pose, field.name) for pose in poses], type=field.type))
    return pa.table(columns, schema=_POSES_SCHEMA)


def _open(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["category"], write_statistics=False)


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise UserError(f"{path} does not exist; run the extract stage first.")
    table = pq.read_table(path)
    if not table.schema.equals(schema):
        raise UserError(f"{path} was written by another version (its columns differ); run the extract stage again.")
    return table
