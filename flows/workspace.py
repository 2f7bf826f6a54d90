"""The folder that a pipeline works in: its parameters and graph, and a lock that allows one run at a time."""

from __future__ import annotations

import configparser
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows import parts
from flows.param_changes import Changes, values
from tasks import paths
from tasks.common import files, git
from tasks.common.errors import UserError
from tasks.config.params import Params, edit, load, parse, read_text
from tasks.extract import listing

log = logging.getLogger(__name__)


class Held(UserError):
    """Another pipeline run holds this workspace."""


@dataclass(frozen=True)
class Plan:
    """What `prepare` is going to write: the text of params.yaml, and messages about its changes."""

    params: Params
    text: str
    messages: tuple[str, ...]


def plan(root: Path, raw: str | None = None, changes: Changes | None = None) -> Plan:
    """Check that a pipeline can run here, and return the parameters that it would have. Nothing is written.

    `raw` is a folder of pictures, or "mannequin" for the built-in ones; None keeps the parts in params.yaml, up to date with
    the folders that exist (see `flows.parts`). Raises UserError if this is no workspace or the parameters would be invalid,
    DataError if a folder does not exist.
    """
    path = root / paths.PARAMS
    load(path)
    if "?" in str(root.resolve()):  # it would end the file's name in the URL of a database
        raise UserError(f"The path of this folder has a question mark, which databases cannot open: {root.resolve()}.")
    if not (root / "dvc.yaml").is_file() or not (root / ".dvc").is_dir():
        raise UserError(f"{root} is not a workspace of Contrapposto: it has no dvc.yaml or no .dvc folder.")
    text = read_text(path)
    messages = []
    if changes is not None and (written := values(changes)):
        messages.append(f"params.yaml: {', '.join(f'{key} is now {value}' for key, value in written.items())}")
        text = edit(text, written)
    before = parse(text, path.name).raw
    after = parts.planned(root, before, raw)
    for name in [name for name in (*before.parts, *after.parts) if before.parts.get(name) != after.parts.get(name)]:
        folder = after.parts.get(name)
        messages.append(f"params.yaml: part {name} {'is gone' if folder is None else f'is now {folder}'}")
    if raw not in (None, "mannequin") and before != after:
        messages.append("(RAW=mannequin brings back the built-in pictures)")
    text = edit(text, {"raw.parts": after.parts, "raw.folder": after.folder} if before != after else {})
    return Plan(parse(text, path.name), text, tuple(messages))


def prepare(root: Path, raw: str | None = None, changes: Changes | None = None) -> Params:
    """Write what `plan` returns, and return the parameters. Call it only while holding the workspace (`alone`).

    Either everything is written or, if an error is raised, nothing. The extracted poses of parts that are gone are deleted, and
    the parts are listed (see `tasks.extract.listing`).
    """
    from flows import dvc_graph  # imports DVC, which takes a second

    planned = plan(root, raw, changes)
    if not git.has_repository(root):
        _disable_scm(root)
    path = (root / paths.PARAMS).resolve()  # if it is a link, the file behind it is written
    before, after = path.read_bytes(), planned.text.encode()
    if after != before:
        files.write_bytes(path, after)
    try:
        if after != before:
            dvc_graph.check_folders(root, planned.params.raw.parts.values())
        dvc_graph.check_parameters(root)
    except BaseException:
        if after != before:
            files.write_bytes(path, before)
        raise
    for message in planned.messages if after != before else ():
        log.info(message)
    parts.warn_of_unused(root, planned.params.raw)
    parts.remove_stale(root, planned.params.raw)
    listing.update(root, planned.params.raw)
    return planned.params


def _disable_scm(root: Path) -> None:
    """Tell DVC, in this copy only, that there is no git, as in an unpacked archive: it would refuse to work."""
    local = root / ".dvc/config.local"
    config = configparser.ConfigParser(interpolation=None)
    try:
        config.read(local, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"{local} cannot be read: {' '.join(str(error).split())}.") from error
    if not config.getboolean("core", "no_scm", fallback=False):
        log.info("This folder is not a git clone: dvc.lock versions the datasets, without commits.")
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
    if not (root / paths.PARAMS).is_file():
        raise UserError(f"{root} is not a workspace of Contrapposto: it has no {paths.PARAMS}.")
    state = root / paths.STATE
    if state.exists() and not state.is_dir():
        raise UserError(f"{state} is a file; runs need a folder of this name: move it away.")
    state.mkdir(exist_ok=True)
    return open(state / "pipeline.lock", "a+", encoding="utf-8")


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the workspace. Raises Held if another pipeline run holds it, UserError if this is no workspace."""
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
