"""The key of each file's bytes. A file is read for it once, and again only where it may have changed.

As git and DVC do, a file with the inode, size and times that it had when it was hashed is taken to hold the same bytes: the
time of its last change (ctime) is the system's own and moves with every write. A file that was changed just before it was
hashed is not remembered, since its clock may be too coarse to show a change that came just after.
"""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tasks.extraction.findings import Refused
from tasks.extraction.ingest import Refusal, Source, content_key, open_regular, printable
from tasks.extraction.store import Store

SETTLED_S = 2.0  # the coarsest clock of a common file system, FAT's
_READERS = 8  # files read at once: disks and network folders serve several together sooner than one by one
_AHEAD = 256  # files read before their keys are asked for

_Hashed = tuple[str | Refused, str | None]  # the key, and the stamp by which it may be remembered


def content_keys(folder: Path, sources: Iterable[Source], store: Store) -> Generator[str | Refused, None, None]:
    """The key of each file's bytes, or why it cannot be read; what the store remembers of untouched files is not read."""
    ahead: deque[str | Future[_Hashed]] = deque()

    def oldest() -> str | Refused:
        found = ahead.popleft()
        if isinstance(found, str):
            return found
        key, stamp = found.result()
        if stamp and isinstance(key, str):
            store.see(stamp, key)
        return key

    threads = ThreadPoolExecutor(_READERS)  # hashing lets go of the interpreter
    try:
        for source in sources:
            path = folder / source.path
            stamp = _stamp(path)
            ahead.append((stamp and store.seen(stamp)) or threads.submit(_hash, path, stamp))
            if len(ahead) == _AHEAD:
                yield oldest()
        while ahead:
            yield oldest()
    finally:
        threads.shutdown(cancel_futures=True)


def _hash(path: Path, stamp: str | None) -> _Hashed:
    try:
        with open_regular(path) as file:
            key = content_key(file)
            settled = time.time() - os.fstat(file.fileno()).st_ctime > SETTLED_S
    except Refusal as refusal:
        return Refused(None, refusal.reason, refusal.detail), None
    return key, stamp if settled and stamp == _stamp(path) else None


def _stamp(path: Path) -> str | None:
    """What changes with the file; None where it is to be opened in any case, and be it to learn why it cannot be."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode) or printable(str(path)) != str(path) or not os.access(path, os.R_OK):
        return None
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
