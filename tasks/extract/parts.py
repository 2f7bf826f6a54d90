"""The extracted parts combined, as later stages read them. Sources are named `<part>/<path in the part>`.

Each part is extracted by itself into `data/poses/<part>/`. Only the parts in `params.raw` are read, even if other folders
exist there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError
from tasks.config.params import Raw
from tasks.extract import poses_table
from tasks.extract.poses_table import Poses, Reject
from tasks.extract.source_files import behind_dvc_link, dvc_cache

CAPTIONS = "captions.json"  # in the folder of a part's poses, if there are any: source -> caption
_COUNTS = ("files", "frames", "files_with_person", "persons")


@dataclass(frozen=True)
class SourcePaths:
    """The file of each source."""

    root: Path
    raw: Raw

    def __call__(self, source: str) -> Path:
        """The file of `<part>/<path in the part>`. Raises DataError if params.yaml no longer has the part."""
        part, path = source.split("/", 1)
        if part not in self.raw.parts:
            raise DataError(
                f"The dataset has pictures of the part {part!r}, which raw.parts of params.yaml no longer names: run the "
                "stages before this one again; `dvc repro` runs them in order."
            )
        return behind_dvc_link(self.root / self.raw.parts[part] / path, self._cache)

    @cached_property
    def _cache(self) -> Path:
        return dvc_cache(self.root)


def folders(root: Path, raw: Raw) -> dict[str, Path]:
    """The folder of extracted poses of each part, ordered by the parts' names."""
    return {part: root / paths.POSES / part for part in sorted(raw.parts)}


def read_poses(root: Path, raw: Raw) -> Poses:
    """The persons of all parts, in order of (source, frame, person) within each. Raises UserError like `poses_table`."""
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
    """The rejects of all parts. Raises UserError like `poses_table`."""
    return [
        replace(reject, source=f"{part}/{reject.source}")
        for part, folder in folders(root, raw).items()
        for reject in poses_table.read_rejects(folder)
    ]


def summary(root: Path, raw: Raw) -> dict[str, Any]:
    """The parts' summaries combined: the sums of the counts and of `rejects`, and `joint_error` by part where it is known."""
    summaries = {part: files.read_json(folder / "summary.json") for part, folder in folders(root, raw).items()}
    rejects = sum((Counter(one["rejects"]) for one in summaries.values()), Counter())
    return {
        **{name: sum(one[name] for one in summaries.values()) for name in _COUNTS},
        "rejects": dict(rejects),
        "joint_error": {part: one["joint_error"] for part, one in summaries.items() if "joint_error" in one},
    }


def captions(root: Path, raw: Raw) -> dict[str, str]:
    """The captions of the pictures that have one, by source."""
    return {
        f"{part}/{source}": text
        for part, folder in folders(root, raw).items()
        if (folder / CAPTIONS).is_file()
        for source, text in files.read_json(folder / CAPTIONS).items()
    }


def provenance(root: Path, raw: Raw) -> list[tuple[str, str]]:
    """(source of the text, text) of every SOURCE.txt: where the pictures come from and under which licence."""
    return [
        (f"{part}/{path}", text)
        for part, folder in folders(root, raw).items()
        for path, text in sorted(files.read_json(folder / "provenance.json").items())
    ]
