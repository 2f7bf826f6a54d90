"""The key of a file's bytes. A file is hashed once, and again only if it may have changed.

Like git and DVC, this assumes that a file has the same bytes as long as its inode, size and times are the same: the time of
its last change (ctime) is set by the system at every write. These numbers are the file's stamp.
"""

from __future__ import annotations

import os
import stat
import time
from io import BufferedReader
from pathlib import Path

from tasks.extract.source_files import content_key, printable

SETTLED_S = 2.0  # resolution of the coarsest clock of a common file system (FAT)


def stamp_of(path: Path) -> str | None:
    """A file's stamp; None if the file must be opened anyway, for example to find out why it cannot be read."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode) or printable(str(path)) != str(path) or not os.access(path, os.R_OK):
        return None
    return _stamp(status)


def read_key(file: BufferedReader) -> tuple[str, str | None]:
    """The key of an open file's bytes, and the stamp under which to remember it; the file is left at its beginning.

    The stamp is None if the file changed while it was read, or just before: the file system's clock may be too coarse to
    show one more change. Raises Refusal if the file cannot be read.
    """
    before = os.fstat(file.fileno())
    key = content_key(file)
    settled = time.time() - before.st_ctime > SETTLED_S
    return key, _stamp(before) if settled and _stamp(before) == _stamp(os.fstat(file.fileno())) else None


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
