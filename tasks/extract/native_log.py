"""Capture what native libraries write to standard error."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import IO


@contextmanager
def native_log_set_aside() -> Iterator[None]:
    """Capture what is written to file descriptor 2 in the `with` block. An exception that leaves the block gets the text as
    a note; otherwise the text is dropped.

    MediaPipe prints warnings for every landmarker, and picture decoders for every damaged file, and neither can be
    silenced. Real errors are raised as well.
    """
    sys.stderr.flush()
    log = _log()
    os.ftruncate(log.fileno(), 0)
    stderr = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    except BaseException as error:
        log.seek(0)
        if text := log.read().decode(errors="replace").strip():
            error.add_note(text)
        raise
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        log.seek(0)


@cache
def _log() -> IO[bytes]:
    """The file that takes the text: one per process, because this runs for every picture."""
    return tempfile.TemporaryFile()
