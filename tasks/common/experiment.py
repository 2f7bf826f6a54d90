"""DVC experiments. Those of a queue run in a folder of their own, `.dvc/tmp/exps/<name>/` of the workspace.

DVC fills that folder from git and its cache. What neither has lies in the workspace only: the pictures that were delivered, the
landmarker's model, downloaded weights, and the MLflow store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from tasks import paths

NAME = "DVC_EXP_NAME"  # set by DVC while an experiment runs
LINKED = (Path("models"), paths.NETWORK_WEIGHTS, paths.REGISTERED_MODELS)


def name() -> str | None:
    """The name of the experiment that runs this process; None if it is no experiment."""
    return os.environ.get(NAME)


def workspace(root: Path) -> Path:
    """The workspace to which the folder of an experiment belongs; `root` itself if it is not such a folder."""
    for folder in root.resolve().parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return root


def is_apart(root: Path) -> bool:
    """Whether `root` is the folder of an experiment, apart from its workspace."""
    return workspace(root) != root


def link(root: Path, folders: Iterable[str]) -> None:
    """In the folder of an experiment, link those of `folders` and LINKED that are missing to the ones of the workspace."""
    home = workspace(root)
    if home == root:
        return
    for folder in (*LINKED, *map(Path, folders)):
        here, there = root / folder, home / folder
        if there.exists() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there.resolve(), target_is_directory=True)
