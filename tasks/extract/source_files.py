"""Opening users' files safely: regular files only, identified by their bytes."""

from __future__ import annotations

import configparser
import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path

from tasks.extract.findings import Reason


class Refusal(Exception):
    """A file that cannot be used: a reason of the closed list, and details in words."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def printable(path: str) -> str:
    """A file name as valid Unicode; invalid bytes are written as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading. Raises Refusal if it is a link or not a regular file, or cannot be opened.

    A name that is not valid UTF-8 is refused too, because no table could hold it.
    """
    if printable(str(path)) != str(path):
        raise Refusal(Reason.UNREADABLE, "its name is not valid UTF-8")
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        detail = "a symbolic link; links are not followed" if path.is_symlink() else str(error.strerror)
        raise Refusal(Reason.UNREADABLE, detail) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refusal(Reason.UNREADABLE, "not a regular file")
    return os.fdopen(descriptor, "rb")


def content_key(file: BufferedReader) -> str:
    """The first 16 hexadecimal digits of the sha256 of the file's bytes; the file is left at its beginning."""
    file.seek(0)
    try:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Refusal(Reason.UNREADABLE, str(error.strerror)) from error
    file.seek(0)
    return digest[:16]


def dvc_cache(root: Path) -> Path:
    """The folder of DVC's cached objects in the workspace `root`, as the configuration files of DVC have it.

    With `cache.type` symlink, `dvc add` replaces files by links to these objects.
    """
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    user_config = Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or home / "dvc") / "config"
    cache = root / ".dvc/cache"
    for file in (user_config, root / ".dvc/config", root / ".dvc/config.local"):
        config = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            config.read(file, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue  # DVC itself will report it
        if configured := config.get("cache", "dir", fallback=""):
            cache = file.parent / configured
    return cache.resolve() / "files/md5"


def behind_dvc_link(path: Path, cache: Path | None) -> Path:
    """The cached object if `path` is a link that DVC made (see `dvc_cache`), else `path` itself.

    Only links into this one folder are followed: others may lead to files that nobody meant to use.
    """
    if cache is not None and path.is_symlink() and printable(str(path)) == str(path):
        target = Path(os.path.realpath(path))
        if target.is_relative_to(cache):
            return target
    return path
