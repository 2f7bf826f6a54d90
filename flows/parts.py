"""Keeps `raw.parts` of params.yaml in step with the folders of pictures that exist.

DVC runs one stage `extract@<part>` per entry, so params.yaml always states what the dataset is made of.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.common.text import one_line
from tasks.config.data import MANNEQUIN
from tasks.config.params import Raw
from tasks.extract.scan import MEDIA_SUFFIXES, has_sources, is_system
from tasks.extract.source_files import printable

log = logging.getLogger(__name__)

# Folders of the workspace that no part may contain or lie in.
WRITTEN = (
    paths.MANNEQUIN, paths.LISTINGS,
    paths.POSES, paths.DATASET, paths.SHARDS, paths.ARTIFACTS, paths.SAMPLES, paths.REPORTS, paths.EXPORTS, paths.GENERATED,
    paths.STATE, Path("mlruns"), Path("models"), Path(".dvc"), Path(".git"), Path(".venv"),
)  # fmt: skip
ARCHIVE_SUFFIXES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"})
_NAME = re.compile(r"[^A-Za-z0-9_]+")  # characters that a part's name must not have


def current(root: Path, raw: Raw) -> dict[str, str]:
    """The parts that exist now, name -> folder.

    These are the entries of `raw.parts`, without those whose folder in `raw.folder` is gone or empty, and every other folder in
    `raw.folder` that holds a file. System folders are no parts, and the built-in mannequins are one only if `raw.parts` names
    them, because their folder is generated. Raises UserError if `raw.folder` cannot be listed.
    """
    if raw.folder is None or not os.path.isdir(root / raw.folder):
        return dict(raw.parts)
    inbox = Path(raw.folder)
    # A name in .tmp marks unfinished copies everywhere in the project. params.yaml cannot hold a name that is not UTF-8.
    names = [
        path.name
        for path in _entries(root / inbox)
        if os.path.isdir(path) and not path.name.endswith(".tmp") and printable(path.name) == path.name
    ]
    folders = [
        folder
        for folder in (f"{inbox / name}" for name in names)
        if folder == MANNEQUIN or (_conflict(root, folder) is None and has_sources(root / folder))
    ]
    kept = {
        name: folder
        for name, folder in raw.parts.items()
        if folder == MANNEQUIN or Path(folder).parent != inbox or folder in folders
    }
    for folder in folders:
        if folder != MANNEQUIN and folder not in kept.values():
            kept[_name(folder, kept)] = folder
    return kept


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in order of the names, without the files and folders of the system."""
    try:
        return sorted(path for path in folder.iterdir() if not is_system(path.name))
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed ({error.strerror}).") from error


def _name(folder: str, taken: dict[str, str]) -> str:
    """A part name for a folder that is not taken yet; "mannequin" is reserved for the built-in pictures."""
    name = wanted = _NAME.sub("-", Path(folder).name).strip("-")[:90] or "part"
    number = 1
    while name in taken or (name == "mannequin" and folder != MANNEQUIN):
        number += 1
        name = f"{wanted}-{number}"
    return name


def planned(root: Path, raw: Raw, requested: str | None = None) -> Raw:
    """What the section `raw` of params.yaml should be now. Nothing is written.

    `requested`: the folder that becomes the only part, or "mannequin" for the built-in pictures; None: the parts that exist.
    Raises DataError if the folder of a part is missing, empty or unreadable or there is no part, and UserError if a folder
    cannot be a part.
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
    """Raise an error unless the folder lies apart from what runs write and holds files (the built-in one is generated)."""
    if folder != MANNEQUIN and not os.path.isdir(root / folder):
        raise DataError(f"There is no folder {root / folder} to take pictures from.")
    if (reason := _conflict(root, folder)) is not None:
        raise UserError(f"{_resolved(root / folder)} cannot be the folder of pictures, because {reason}.")
    if folder != MANNEQUIN and not os.access(root / folder, os.R_OK | os.X_OK):
        raise DataError(f"The folder {root / folder} cannot be read; check its permissions.")
    if folder != MANNEQUIN and not has_sources(root / folder):
        raise DataError(f"The folder {root / folder} holds no file to take pictures from.")


def _conflict(root: Path, folder: str) -> str | None:
    """Why a folder cannot be a part because of where it lies; None if it can."""
    path, workspace = _resolved(root / folder), _resolved(root)
    if workspace.is_relative_to(path):
        return "it contains this project"
    if folder == MANNEQUIN:
        return None
    for written in WRITTEN:
        if (workspace / written).is_relative_to(path) or path.is_relative_to(workspace / written):
            return f"runs write into {workspace / written}"
    return None


def warn_of_unused(root: Path, raw: Raw) -> None:
    """Say what lies in `raw.folder` and is not used: pictures and archives beside the parts, folders with damaged names."""
    if raw.folder is None or not os.path.isdir(root / raw.folder):
        return
    loose, archives, unnamed = [], [], []
    for path in _entries(root / raw.folder):
        name = one_line(printable(path.name))
        if os.path.isdir(path):
            unnamed += [name] if printable(path.name) != path.name else []
        elif path.suffix.lower() in MEDIA_SUFFIXES:
            loose.append(name)
        elif path.suffix.lower() in ARCHIVE_SUFFIXES:
            archives.append(name)
    for names, advice in (
        (loose, "put pictures into a folder there, a part"),
        (archives, "unpack archives into a folder there, a part"),
        (unnamed, "rename the folder, whose name is not valid UTF-8"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            log.warning(f"{names[0]}{more} in {root / raw.folder}: not used; {advice}.")


def remove_stale(root: Path, raw: Raw) -> None:
    """Delete the extracted poses of parts that are gone."""
    for extracted in (root / paths.POSES).glob("*/"):
        if extracted.name not in raw.parts:
            shutil.rmtree(extracted)


def _only(root: Path, requested: str) -> Raw:
    """One folder as the only part: a relative path inside the workspace, an absolute path outside."""
    if requested == "mannequin":
        return Raw.model_validate({})
    folder, workspace = _resolved(Path(os.path.expanduser(requested))), _resolved(root)
    name = str(folder.relative_to(workspace) if folder.is_relative_to(workspace) else folder)
    return Raw(folder=None, parts={_name(name, {}): name})


def _resolved(path: Path) -> Path:
    """The absolute path without links; unlike `Path.resolve` it accepts a loop of links."""
    return Path(os.path.realpath(path))
