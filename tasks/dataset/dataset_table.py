"""The curated index `data/dataset/persons.parquet`: who is kept, in which group and split, cropped where.

    key, source, category   as in the poses table
    group                   smallest key of the near-identical pictures that it belongs to
    split                   train, val or test; the same for a whole group
    crop                    x0, y0, side of the square around the person, pixels
    pose                    float32 [33, 3]: world landmarks, hip-centred, torso-scaled

`gated.parquet` holds the persons that were found but not kept: key, source, category, reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

PERSONS, GATED = "persons.parquet", "gated.parquet"
SPLITS = ("train", "val", "test")

_PERSONS = pa.schema(
    [
        *((name, pa.string()) for name in ("key", "source", "category", "group", "split")),
        ("crop", pa.list_(pa.int32(), 3)),
        ("pose", pa.list_(pa.float32(), 99)),
    ]
)
_GATED = pa.schema([(name, pa.string()) for name in ("key", "source", "category", "reason")])


class Gate(StrEnum):
    """Why a person that was found is not kept."""

    LOW_VISIBILITY = "low_visibility"  # most limbs are guessed, not seen


@dataclass(frozen=True)
class Persons:
    """The kept persons, column by column, in the order of the poses table."""

    key: list[str]
    source: list[str]
    category: list[str]
    group: list[str]
    split: list[str]
    crop: np.ndarray  # int32 [n, 3]
    pose: np.ndarray  # float32 [n, 33, 3]

    def __len__(self) -> int:
        return len(self.key)

    def of(self, split: str) -> list[int]:
        """The rows of one split."""
        return [i for i, name in enumerate(self.split) if name == split]


@dataclass(frozen=True)
class Gated:
    """One person that was found but not kept."""

    key: str
    source: str
    category: str
    reason: Gate


def write(folder: Path, persons: Persons, gated: list[Gated]) -> None:
    """Write both tables into `folder`; the same rows give the same bytes."""
    n = len(persons)
    columns = [pa.array(getattr(persons, name), pa.string()) for name in _PERSONS.names[:5]]
    for values, width in ((persons.crop.reshape(n, 3), 3), (persons.pose.reshape(n, 99), 99)):
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width))
    _write(folder / PERSONS, pa.table(columns, schema=_PERSONS))
    rows = [[getattr(row, name) for row in gated] for name in _GATED.names]
    _write(folder / GATED, pa.table([pa.array(row, pa.string()) for row in rows], schema=_GATED))


def _write(path: Path, table: pa.Table) -> None:
    pq.write_table(table, path, compression="zstd", write_statistics=False)


def read(folder: Path) -> Persons:
    """The kept persons."""
    table = pq.read_table(folder / PERSONS)
    n = len(table)
    key, source, category, group, split = (table[name].to_pylist() for name in _PERSONS.names[:5])
    return Persons(
        key,
        source,
        category,
        group,
        split,
        crop=table["crop"].combine_chunks().flatten().to_numpy().reshape(n, 3),
        pose=table["pose"].combine_chunks().flatten().to_numpy().reshape(n, 33, 3),
    )


def read_gated(folder: Path) -> list[Gated]:
    """The persons that were found but not kept."""
    rows = pq.read_table(folder / GATED).to_pylist()
    return [Gated(**{**row, "reason": Gate(row["reason"])}) for row in rows]
