"""Messages for people: `logging` set up so that every message is a plain line on stdout.

A module has `log = logging.getLogger(__name__)`; every entry point calls `to_stdout` once. The result of a command, such as a
table, is printed by the command itself.
"""

from __future__ import annotations

import io
import logging
import sys

PACKAGES = ("flows", "tasks")


class _Print(logging.Handler):
    """Prints messages with `print`, which Prefect replaces in a deployed flow: so they appear in the run's log, too."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def to_stdout() -> None:
    """Print the messages of this project's packages, from INFO upwards. Calling it again changes nothing.

    Characters that the terminal's encoding lacks, as in the locale C, are written as escapes: a name must not stop a run.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    for package in PACKAGES:
        logger = logging.getLogger(package)
        if not any(isinstance(handler, _Print) for handler in logger.handlers):
            logger.addHandler(_Print())
        logger.setLevel(logging.INFO)
        logger.propagate = False  # a library that gives the root logger a handler would make every line appear twice
