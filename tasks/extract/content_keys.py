"""The key of a file's bytes. A file is read for it once, and again only where it may have changed.

As git and DVC do, a file with the inode, size and times that it had when it was hashed is taken to hold the same bytes: the
time of its last change (ctime) is the system's own and moves with every write. These numbers are the file's stamp.
"""

from __future__ import annotations

import os
import stat
import time
from io import BufferedReader
from pathlib import Path

from tasks.extract.decode import content_key, printable

SETTLED_S = 2.0  # the coarsest clock of a common file system, FAT's


def stamp_of(path: Path) -> str | None:
    """A file's stamp; None where it is to be opened in any case, and be it to learn why it cannot be."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode) or printable(str(path)) != str(path) or not os.access(path, os.R_OK):
        return None
    return _stamp(status)


def read_key(file: BufferedReader) -> tuple[str, str | None]:
    """The key of an open file's bytes, and the stamp by which it may be remembered; the file is left at its beginning.

    There is no stamp where the file was changed while it was read, or just before: its clock may be too coarse to show a
    change that comes just after. Raises Refusal where the file cannot be read.
    """
    before = os.fstat(file.fileno())
    key = content_key(file)
    settled = time.time() - before.st_ctime > SETTLED_S
    return key, _stamp(before) if settled and _stamp(before) == _stamp(os.fstat(file.fileno())) else None


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
