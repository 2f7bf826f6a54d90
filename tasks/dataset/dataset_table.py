"""The curated index `data/dataset/persons.parquet`: the kept persons with their group, split and crop.

    key, source, source_kind, frame   as in the poses table
    category                          as in the poses table; the pose cluster's name if it was empty
    group                             smallest key of its group: near-copies, and rows of one picture or video
    split                             train, val or test; the same for a whole group
    cluster                           number of the pose cluster (see `clusters`); 0 is the largest
    crop                              x0, y0, side of the square around the person, pixels; zeros if there is no picture
    pose                              float32 [33, 3]: world landmarks, hip-centred, torso-scaled

`gated.parquet` holds the persons that were found and not kept: key, source, frame, category, group, reason, detail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.common import tables

PERSONS, GATED = "persons.parquet", "gated.parquet"
SPLITS = ("train", "val", "test")

_TEXTS = ("key", "source", "source_kind", "category", "group", "split")
_PERSONS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("frame", pa.int32()),
        ("cluster", pa.int32()),
        ("crop", pa.list_(pa.int32(), 3)),
        ("pose", pa.list_(pa.float32(), 99)),
    ]
)
_GATED = pa.schema(
    [
        ("frame", pa.int32()),
        *((name, pa.string()) for name in ("key", "source", "category", "group", "reason", "detail")),
    ]
)


class Gate(StrEnum):
    """Why a person that was found is not kept: the closed list, in the order of the checks."""

    FORGOTTEN = "forgotten"  # opted out, see tasks.registry.forget
    LOW_VISIBILITY = "low_visibility"  # most limbs are guessed
    PERSON_TOO_SMALL = "person_too_small"
    TRUNCATED = "truncated"  # limbs are outside the picture
    BLURRED = "blurred"
    TOO_DARK = "too_dark"
    TOO_BRIGHT = "too_bright"
    IN_ANOTHER_PART = "in_another_part"  # the same file is in an earlier part
    REPEATED_POSE = "repeated_pose"  # a better row of its group has the same pose
    ABOVE_CAP = "above_cap"  # its group has more rows than curate.group_cap


@dataclass(frozen=True)
class Persons:
    """The kept persons, column by column, in the order of the poses table."""

    key: list[str]
    source: list[str]
    source_kind: list[str]
    category: list[str]
    group: list[str]
    split: list[str]
    frame: np.ndarray  # int32 [n]
    cluster: np.ndarray  # int32 [n]
    crop: np.ndarray  # int32 [n, 3]
    pose: np.ndarray  # float32 [n, 33, 3]

    def __len__(self) -> int:
        return len(self.key)

    def of(self, split: str) -> list[int]:
        """The rows of one split."""
        return [i for i, name in enumerate(self.split) if name == split]

    @property
    def pictured(self) -> np.ndarray:
        """Which rows have a picture, bool `[n]`."""
        return self.crop[:, 2] > 0


@dataclass(frozen=True)
class Gated:
    """One person that was found and not kept. `detail` gives the figure; `group` is empty if the gate refused the row."""

    key: str
    source: str
    frame: int
    category: str
    group: str
    reason: Gate
    detail: str


def write(folder: Path, persons: Persons, gated: Sequence[Gated]) -> None:
    """Write both tables into `folder`; the same rows give the same bytes."""
    n = len(persons)
    columns = [pa.array(getattr(persons, name), pa.string()) for name in _TEXTS]
    columns += [pa.array(values, pa.int32()) for values in (persons.frame, persons.cluster)]
    for values, width in ((persons.crop.reshape(n, 3), 3), (persons.pose.reshape(n, 99), 99)):
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width))
    _write(folder / PERSONS, pa.table(columns, schema=_PERSONS))
    rows = [pa.array([getattr(row, field.name) for row in gated], field.type) for field in _GATED]
    _write(folder / GATED, pa.table(rows, schema=_GATED))


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd", write_statistics=False)


def read(folder: Path) -> Persons:
    """The kept persons. Raises DataError as `tables.read` does."""
    table = tables.read(folder / PERSONS, _PERSONS, "curate")
    n = len(table)
    return Persons(
        **{name: table[name].to_pylist() for name in _TEXTS},
        frame=table["frame"].to_numpy(),
        cluster=table["cluster"].to_numpy(),
        crop=table["crop"].combine_chunks().flatten().to_numpy().reshape(n, 3),
        pose=table["pose"].combine_chunks().flatten().to_numpy().reshape(n, 33, 3),
    )


def read_gated(folder: Path) -> list[Gated]:
    """The persons that were found and not kept. Raises DataError as `tables.read` does."""
    rows = tables.read(folder / GATED, _GATED, "curate").to_pylist()
    return [Gated(**{**row, "reason": Gate(row["reason"])}) for row in rows]
