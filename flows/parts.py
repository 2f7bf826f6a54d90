"""Keeps `raw.parts` of params.yaml in step with the folders of pictures that exist.

DVC runs one stage `extract@<part>` per entry, so params.yaml always states what the dataset is made of.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Raw

# Folders of the workspace that no part may contain or lie in.
WRITTEN = (
    paths.POSES, paths.DATASET, paths.SHARDS, paths.ARTIFACTS, paths.SAMPLES, paths.REPORTS, paths.EXPORTS, paths.GENERATED,
    paths.STATE, Path("mlruns"), Path(".dvc"), Path(".git"), Path(".venv"),
)  # fmt: skip
_NAME = re.compile(r"[^A-Za-z0-9_]+")  # characters that a part's name must not have


def current(root: Path, raw: Raw) -> dict[str, str]:
    """The parts that exist now, name -> folder: the entries of `raw.parts` without those whose folder in `raw.folder` is gone,
    plus every other folder in `raw.folder`.

    The built-in mannequins are a part only if `raw.parts` names them, because their folder is generated.
    """
    if raw.folder is None or not (root / raw.folder).is_dir():
        return dict(raw.parts)
    inbox = Path(raw.folder)
    # a name in .tmp marks unfinished copies everywhere in the project, and DVC ignores it
    names = [path.name for path in (root / inbox).iterdir() if path.is_dir()]
    folders = sorted(f"{inbox / name}" for name in names if not name.startswith(".") and not name.endswith(".tmp"))
    kept = {
        name: folder
        for name, folder in raw.parts.items()
        if folder == MANNEQUIN or Path(folder).parent != inbox or folder in folders
    }
    for folder in folders:
        if folder != MANNEQUIN and folder not in kept.values():
            kept[_name(folder, kept)] = folder
    return kept


def _name(folder: str, taken: dict[str, str]) -> str:
    """A part name for a folder that is not taken yet."""
    name = wanted = _NAME.sub("-", Path(folder).name).strip("-")[:90] or "part"
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def planned(root: Path, raw: Raw, requested: str | None = None) -> Raw:
    """What the section `raw` of params.yaml should be now. Nothing is written.

    `requested`: the folder that becomes the only part, or "mannequin" for the built-in pictures; None: the parts that exist.
    Raises DataError if the folder of a part is missing or there is no part, UserError if a folder cannot be a part.
    """
    if requested is not None:
        raw = _only(root, requested)
    parts = current(root, raw)
    if not parts:
        raise DataError(f"There is no folder left in {root / str(raw.folder)} to take pictures from.")
    for folder in parts.values():
        _check(root, folder)
    return raw.model_copy(update={"parts": parts})


def _check(root: Path, folder: str) -> None:
    """Raise an error unless the folder exists (the built-in one is generated) and lies apart from what runs write."""
    if folder != MANNEQUIN and not (root / folder).is_dir():
        raise DataError(f"There is no folder {root / folder} to take pictures from.")
    path, workspace = (root / folder).resolve(), root.resolve()
    if workspace.is_relative_to(path):
        raise UserError(f"{path} cannot be the folder of pictures, because it contains this project.")
    for written in WRITTEN:
        if (workspace / written).is_relative_to(path) or path.is_relative_to(workspace / written):
            raise UserError(f"{path} cannot be the folder of pictures, because runs write into {workspace / written}.")


def remove_stale(root: Path, raw: Raw) -> None:
    """Delete the extracted poses of parts that are gone."""
    for extracted in (root / paths.POSES).glob("*/"):
        if extracted.name not in raw.parts:
            shutil.rmtree(extracted)


def _only(root: Path, requested: str) -> Raw:
    """One folder as the only part: a relative path inside the workspace, an absolute path outside."""
    if requested == "mannequin":
        return Raw.model_validate({})
    folder, workspace = Path(requested).expanduser().resolve(), root.resolve()
    name = str(folder.relative_to(workspace) if folder.is_relative_to(workspace) else folder)
    return Raw(folder=None, parts={_name(name, {}): name})
