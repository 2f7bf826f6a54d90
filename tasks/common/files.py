"""Atomic writes: a file or folder appears under its name only when it is complete.

Unfinished work has a name that ends in `.tmp`, which git and DVC ignore.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.common.errors import DataError, UserError
from tasks.common.text import one_line


def _temporary(path: Path, suffix: str = "") -> Path:
    return path.with_name(f"{path.name}{suffix}.tmp")


def check_folder(path: Path) -> None:
    """Raise UserError if there is no such folder."""
    if not path.is_dir():
        raise UserError(f"The folder {path} does not exist.")


@contextmanager
def new_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path to write a file to. On leaving without an error the file replaces `path`; otherwise it is removed.

    The folder of `path` is made. With `durable` the file is on disk before it gets its name, and the name is on disk when
    this returns, so that a power failure leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill. On leaving without an error it replaces `path`; otherwise it is removed.

    The old folder is renamed, then the new one, then the old one is deleted. A process that is killed between the two
    renames leaves no `path`, but the whole old folder under its temporary name; the next call puts it back.
    """
    temporary, old = _temporary(path), _temporary(path, ".old")
    if old.exists() and not path.exists():
        old.rename(path)
    _remove(old)
    _remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    except BaseException:
        _remove(temporary)  # it may be what has filled the disk
        raise
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    _remove(old)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Work on a file or folder alone: others that ask for the same wait, also in other processes of this machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}-lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one but not what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_plain(name: str) -> bool:
    """Whether a name that a file gives is that of a file in the same folder: no path, and neither `.` nor `..`."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically; its folder is made."""
    with new_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: sorted keys, indented. Raises ValueError for NaN."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


class DamagedFile(DataError, ValueError):
    """A file that this project wrote cannot be understood, for example after a power failure."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise DamagedFile instead of what libraries raise when the bytes in `path` are not what should be there."""
    try:
        yield
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path} is damaged ({one_line(str(error))}); remove it and run again.") from error


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises DamagedFile if it is none."""
    with reading(path):
        return json.loads(path.read_bytes())
