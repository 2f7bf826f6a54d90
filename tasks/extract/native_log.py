"""What native libraries print past Python, kept off the screen and not lost."""

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
    """Catch what is written to file descriptor 2 inside; an exception that leaves it carries the text as a note.

    MediaPipe prints warnings for each landmarker made and the picture decoders for each damaged file, and neither has
    a switch. What matters they raise as well.
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
    """The file that takes the text: one for the life of the process, since this runs for every picture."""
    return tempfile.TemporaryFile()
