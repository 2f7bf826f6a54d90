"""A command on a leash: when its owner lets go, or dies however suddenly, the command and all it started are stopped.

The owner holds one end of a pipe, a small keeper process in a session of its own holds the other. The pipe closes when
the owner calls `release`, and just as well when the owner is killed with SIGKILL.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

GRACE_SECONDS = 30.0  # between TERM and KILL; more than a stage gives the processes that it started itself
LAST_SECONDS = 5.0  # for the command, once everything it started has ended
OUT_OF_TIME = 124  # exit code of a command that was stopped at its limit, as timeout(1) has it


def start(
    command: Sequence[str],
    cwd: Path,
    environment: dict[str, str],
    output: int | IO[str],
    grace: float = GRACE_SECONDS,
    limit: float = math.inf,
) -> subprocess.Popen[str]:
    """Start a command on a leash; stdout and stderr go to `output` (a file or subprocess.PIPE) as one text stream.

    When it is to stop, or has run for `limit` seconds, it gets SIGTERM, and SIGKILL after `grace` seconds. The keeper ends
    with the command's own exit code (128 + n where signal n ended it), or OUT_OF_TIME.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.common.process_guard", str(grace), str(limit), *command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def release(keeper: subprocess.Popen[str]) -> None:
    """Stop the command and everything it started, and wait until they are gone."""
    assert keeper.stdin is not None
    keeper.stdin.close()
    if keeper.stdout is not None:
        for _ in keeper.stdout:  # a full pipe would keep them from ending
            pass
        keeper.stdout.close()
    keeper.wait()


def _family() -> set[psutil.Process]:
    """Everything below this process, and what has lost its parent but is still in this session."""
    family = set(psutil.Process().children(recursive=True))
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and os.getsid(process.pid) == os.getpid():
                family.add(process)
        except (ProcessLookupError, PermissionError):
            continue
    return family


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def gone(processes: Collection[psutil.Process], seconds: float) -> bool:
    """Wait until all have ended, `seconds` at most; a process that nobody has waited for has ended, too."""
    deadline = time.monotonic() + seconds
    while any(_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _stop(command: subprocess.Popen[bytes], grace: float) -> None:
    """TERM, wait, KILL, from the leaves up: a DVC whose stage was stopped still gives back its locks itself."""
    family = _family()
    leaves = {process for process in family if process.pid != command.pid}
    _signal(leaves, signal.SIGTERM)
    gone(leaves, grace)
    try:
        command.wait(LAST_SECONDS if leaves else 0)
    except subprocess.TimeoutExpired:
        command.terminate()
        try:
            command.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    _signal(family | _family(), signal.SIGKILL)


def _keep(command: Sequence[str], grace: float, limit: float) -> int:
    """The keeper: run the command until it ends, the pipe closes or its time is over, and leave nothing of it behind."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + limit
    out_of_time = False
    try:
        while child.poll() is None and not out_of_time and not select.select([sys.stdin], [], [], 0.05)[0]:
            out_of_time = time.monotonic() >= deadline
    finally:
        _stop(child, grace)
    code = child.wait()
    if out_of_time:
        return OUT_OF_TIME
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_keep(sys.argv[3:], float(sys.argv[1]), float(sys.argv[2])))
