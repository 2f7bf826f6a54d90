"""The parts of the raw data side by side: what stages after extraction read, each source named `<part>/<path in the part>`.

A part is extracted by itself into `data/poses/<part>/`; a part that `params.raw` does not name is not read, whatever lies
there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.config.params import Raw
from tasks.extract import poses_table
from tasks.extract.poses_table import Poses, Reject

_COUNTS = ("files", "frames", "files_with_person", "persons")


@dataclass(frozen=True)
class Places:
    """Where the file of a source lies. Two of them are equal if they say the same of every source."""

    root: Path
    raw: Raw

    def __call__(self, source: str) -> Path:
        """The file of `<part>/<path in the part>`."""
        part, path = source.split("/", 1)
        return self.root / self.raw.parts[part] / path


def folders(root: Path, raw: Raw) -> dict[str, Path]:
    """What extraction left of each part, by name, in the order of their names."""
    return {part: root / paths.POSES / part for part in sorted(raw.parts)}


def read_poses(root: Path, raw: Raw) -> Poses:
    """Everybody found in any part, in order of (source, frame, person) within each; raises UserError as its reader does."""
    tables = {part: poses_table.read_poses(folder) for part, folder in folders(root, raw).items()}
    columns: dict[str, Any] = {}
    for name in vars(next(iter(tables.values()))):
        of_parts = [getattr(table, name) for table in tables.values()]
        columns[name] = (
            np.concatenate(of_parts) if isinstance(of_parts[0], np.ndarray) else list(chain.from_iterable(of_parts))
        )
    columns["source"] = [f"{part}/{source}" for part, table in tables.items() for source in table.source]
    return Poses(**columns)


def read_rejects(root: Path, raw: Raw) -> list[Reject]:
    """All refusals of all parts; raises UserError as its reader does."""
    return [
        replace(reject, source=f"{part}/{reject.source}")
        for part, folder in folders(root, raw).items()
        for reject in poses_table.read_rejects(folder)
    ]


def summary(root: Path, raw: Raw) -> dict[str, Any]:
    """What the parts' summaries say together: counts added up, and `joint_error` of each part that has true joints."""
    read = {part: files.read_json(folder / "summary.json") for part, folder in folders(root, raw).items()}
    errors = {part: one["joint_error"] for part, one in read.items() if "joint_error" in one}
    return added(list(read.values()), _COUNTS) | {"joint_error": errors}


def added(statistics: Sequence[dict[str, Any]], counts: Iterable[str]) -> dict[str, Any]:
    """The sums of some numbers and of the `rejects`, {reason: number}, that several statistics hold."""
    rejects = sum((Counter(one["rejects"]) for one in statistics), Counter())
    return {name: sum(one[name] for one in statistics) for name in counts} | {"rejects": dict(rejects)}


def provenance(root: Path, raw: Raw) -> list[tuple[str, str]]:
    """(where it is said, what is said) about where the pictures come from, and under which licence."""
    return [
        (f"{part}/{path}", text)
        for part, folder in folders(root, raw).items()
        for path, text in sorted(files.read_json(folder / "provenance.json").items())
    ]
