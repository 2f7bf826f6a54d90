"""The folder that a pipeline works in: its parameters and graph, and a lock that allows one run at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flows import parts
from flows.param_changes import Changes, values
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params, load, set_values

log = logging.getLogger(__name__)


class Held(UserError):
    """Another pipeline run holds this workspace."""


def prepare(root: Path, raw: str | None = None, changes: Changes | None = None) -> Params:
    """Check that a pipeline can run here on these pictures, and return the parameters.

    `raw` is a folder of pictures, or "mannequin" for the built-in ones; None keeps what stands in `params.yaml`, with the
    parts that have come since (see `flows.parts`). All of it is written there. So are `changes`, all of them or none.
    Raises UserError if this is no workspace or its parameters are wrong, DataError if a folder is not there.
    """
    path = root / paths.PARAMS
    params = load(path)
    if changes is not None and (written := values(changes)):
        log.info(f"params.yaml: {', '.join(f'{key} is now {value}' for key, value in written.items())}")
        set_values(path, written)
        params = load(path)
    if not (root / "dvc.yaml").is_file() or not (root / ".dvc").is_dir():
        raise UserError(f"{root} is not a workspace of Contrapposto: it has no dvc.yaml or no .dvc folder.")
    params = parts.update(root, params, raw)
    if not any((folder / ".git").exists() for folder in (root.resolve(), *root.resolve().parents)):
        _without_git(root)
    return params


def _without_git(root: Path) -> None:
    """Tell DVC, for this copy alone, that there is no git (an unpacked archive): it refuses to work otherwise."""
    if not (root / ".dvc/config.local").is_file():
        log.info("This folder is no git clone: datasets are versioned by dvc.lock, without commits.")
        command = [sys.executable, "-m", "dvc", "config", "--quiet", "--local", "core.no_scm", "true"]
        subprocess.run(command, cwd=root, check=True)


def _take(lock: IO[str], seconds: float) -> bool:
    """Take the lock, waiting at most `seconds`; returns whether it was taken."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def _open_lock(root: Path) -> IO[str]:
    state = root / paths.STATE
    state.mkdir(exist_ok=True)
    return open(state / "pipeline.lock", "a+", encoding="utf-8")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the workspace. Raises Held if another pipeline run holds it."""
    with _open_lock(root) as lock:
        if not _take(lock, seconds=0.5):  # `held` takes the lock for a moment
            lock.seek(0)
            raise Held(f"Another pipeline run holds this workspace (process {lock.read()}); one at a time.")
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def held(root: Path) -> bool:
    """Whether a pipeline run holds this workspace."""
    with _open_lock(root) as lock:
        return not _take(lock, seconds=0)
