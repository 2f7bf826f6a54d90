"""What every command of this project does around its work: the environment, messages, and errors as one line."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from tasks import paths
from tasks.common import environment, log
from tasks.common.errors import UserError, in_words
from tasks.common.text import one_line

MADE_BY_STAGES = (
    paths.LISTINGS, paths.POSES, paths.DATASET, paths.SHARDS, paths.ANIMATION, paths.CLIPS, paths.FILM,
    paths.VIDEO_CLIPS, paths.ARTIFACTS, paths.SAMPLES, paths.REPORTS,
)  # fmt: skip
INTERRUPTED, NO_READER = 130, 141  # exit codes: 128 + SIGINT, 128 + SIGPIPE


def run(work: Callable[[], int], root: Path | None = None) -> int:
    """Do the work of a command in a workspace (None: the current folder); returns its exit code.

    A problem that the user can fix ends as one line `contrapposto: <sentence>` on stderr and an exit code (2: parameters or
    command line, 3: data, 1: the machine); a bug keeps its traceback. If the reader of the output has gone, as in
    `contrapposto methods | head -1`, the command ends without a word.
    """
    _open_standard_streams()
    log.to_stdout()
    environment.drop_redirections()
    try:
        environment.provide_home(current_folder() if root is None else root)
        environment.check()
        code = work()
        sys.stdout.flush()
        return code
    except UserError as error:
        _tell(str(error))
        return error.code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return NO_READER
        sentence, code = in_words(error), 1
        if sentence is None:
            sentence, code = _missing_output(error), 3
        if sentence is None:
            raise
        _tell(sentence)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED


def _tell(sentence: str) -> None:
    """Print what went wrong as one line, whatever is in the names that it cites; `flows.dvc_graph` reads that line."""
    print(f"contrapposto: {one_line(sentence)}", file=sys.stderr)


def _open_standard_streams() -> None:
    """Replace closed standard streams by nothing: files that are opened later would get their numbers and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


def current_folder() -> Path:
    """The current folder. Raises UserError if it has been deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise UserError("The current folder no longer exists; change to another one.") from error


def _missing_output(error: OSError) -> str | None:
    """The sentence for a missing file that another stage makes; None for any other error."""
    if not isinstance(error, FileNotFoundError) or error.filename is None:
        return None
    path = os.fsdecode(error.filename)
    if not any(f"{os.sep}{folder}{os.sep}" in f"{os.sep}{path}" for folder in MADE_BY_STAGES):
        return None
    return f"{path} does not exist: the stages before this one have not run here; `dvc repro` runs them in order."


def _has_no_reader() -> bool:
    """Whether stdout is a pipe that nobody reads any more; if so, what is still buffered goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not any(events & select.POLLERR for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True
