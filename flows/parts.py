"""Keeps `raw.parts` of params.yaml in step with the folders of pictures that exist.

DVC runs one stage `extract@<part>` per entry, so params.yaml always states what the dataset is made of.
"""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common.errors import DataError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Params, Raw, load, set_values

log = logging.getLogger(__name__)

_NAME = re.compile(r"[^A-Za-z0-9_]+")  # characters that a part's name must not have


def current(root: Path, raw: Raw) -> dict[str, str]:
    """The parts that exist now, name -> folder: the entries of `raw.parts` without those whose folder in `raw.folder` is gone,
    plus every other folder in `raw.folder`.

    The built-in mannequins are a part only if `raw.parts` names them, because their folder is generated.
    """
    if raw.folder is None or not (root / raw.folder).is_dir():
        return dict(raw.parts)
    inbox = Path(raw.folder)
    folders = sorted(
        f"{inbox / path.name}" for path in (root / inbox).iterdir() if path.is_dir() and path.name[0] != "."
    )
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


def update(root: Path, params: Params, requested: str | None = None) -> Params:
    """Write the current parts into params.yaml and return its parameters.

    `requested`: the folder that becomes the only part, or "mannequin" for the built-in pictures; None: the parts that exist
    now. Extracted poses of parts that are gone are deleted. Raises DataError if the folder of a part is missing, or if there
    is no part.
    """
    raw = params.raw if requested is None else _only(root, requested)
    now = current(root, raw)
    if not now:
        raise DataError(f"There is no folder left in {root / str(raw.folder)} to take pictures from.")
    for folder in now.values():
        if folder != MANNEQUIN and not (root / folder).is_dir():
            raise DataError(f"There is no folder {root / folder} to take pictures from.")
    before = params.raw.parts
    changed: dict[str, Any] = {}
    if now != before:
        changed["raw.parts"] = now
        for name in [name for name in (*before, *now) if before.get(name) != now.get(name)]:
            log.info(
                f"params.yaml: part {name} is now {now[name]}" if name in now else f"params.yaml: part {name} has gone"
            )
    if raw.folder != params.raw.folder:
        changed["raw.folder"] = raw.folder
    if requested is not None and changed and requested != "mannequin":
        log.info("(RAW=mannequin brings back the built-in pictures)")
    set_values(root / paths.PARAMS, changed)
    for extracted in (root / paths.POSES).glob("*/"):
        if extracted.name not in now:
            shutil.rmtree(extracted)
    return load(root / paths.PARAMS)


def _only(root: Path, requested: str) -> Raw:
    """One folder as the only part: a relative path inside the workspace, an absolute path outside."""
    if requested == "mannequin":
        return Raw.model_validate({})
    folder, workspace = Path(requested).expanduser().resolve(), root.resolve()
    name = str(folder.relative_to(workspace) if folder.is_relative_to(workspace) else folder)
    return Raw(folder=None, parts={_name(name, {}): name})
