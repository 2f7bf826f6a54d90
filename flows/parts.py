"""Which parts the raw data have: deliveries come and go as folders, and `raw.parts` of params.yaml follows them.

DVC makes one stage `extract@<part>` for each entry, so what the dataset is made of stays written in the parameters.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common.errors import DataError
from tasks.config.data import MANNEQUIN
from tasks.config.params import Params, Raw, load, set_values

_NAME = re.compile(r"[^A-Za-z0-9_]+")  # what a part's name cannot have, nor begin with


def found(root: Path, raw: Raw) -> dict[str, str]:
    """The parts that there are now, name -> folder: those of `raw.parts`, without the ones whose folder in `raw.folder` has
    gone, and every other folder in it.

    The built-in mannequins are a part only as long as they are named: their folder is made, not delivered.
    """
    if raw.folder is None or not (root / raw.folder).is_dir():
        return dict(raw.parts)
    inbox = Path(raw.folder)
    there = sorted(f"{inbox / path.name}" for path in (root / inbox).iterdir() if path.is_dir() and path.name[0] != ".")
    kept = {
        name: folder
        for name, folder in raw.parts.items()
        if folder == MANNEQUIN or Path(folder).parent != inbox or folder in there
    }
    for folder in there:
        if folder != MANNEQUIN and folder not in kept.values():
            kept[_name(folder, kept)] = folder
    return kept


def _name(folder: str, taken: dict[str, str]) -> str:
    """A name for a folder's part that no other part has."""
    name = wanted = _NAME.sub("-", Path(folder).name).strip("-")[:90] or "part"
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    return name


def update(root: Path, params: Params, asked: str | None = None) -> Params:
    """Write the parts that there are now into params.yaml, and return its parameters.

    `asked`: the folder that is to be the only part, or "mannequin" for the built-in one; None: what has been found. What
    extraction left of parts that are no more is removed. Raises DataError if a part's folder is not there, or no part is.
    """
    wanted = params.raw if asked is None else _only(root, asked)
    now = found(root, wanted)
    if not now:
        raise DataError(f"There is no folder left in {root / str(wanted.folder)} to take pictures from.")
    for folder in now.values():
        if folder != MANNEQUIN and not (root / folder).is_dir():
            raise DataError(f"There is no folder {root / folder} to take pictures from.")
    before = params.raw.parts
    changed: dict[str, Any] = {}
    if now != before:
        changed["raw.parts"] = now
        for name in [name for name in (*before, *now) if before.get(name) != now.get(name)]:
            print(
                f"params.yaml: part {name} is now {now[name]}" if name in now else f"params.yaml: part {name} has gone"
            )
    if wanted.folder != params.raw.folder:
        changed["raw.folder"] = wanted.folder
    if asked is not None and changed and asked != "mannequin":
        print("(RAW=mannequin brings back the built-in pictures)")
    set_values(root / paths.PARAMS, changed)
    for left in (root / paths.POSES).glob("*/"):
        if left.name not in now:
            shutil.rmtree(left)
    return load(root / paths.PARAMS)


def _only(root: Path, asked: str) -> Raw:
    """One folder as the only part: relative inside the workspace, absolute outside. Nothing is looked for beside it."""
    if asked == "mannequin":
        return Raw.model_validate({})
    folder, workspace = Path(asked).expanduser().resolve(), root.resolve()
    name = str(folder.relative_to(workspace) if folder.is_relative_to(workspace) else folder)
    return Raw(folder=None, parts={_name(name, {}): name})
