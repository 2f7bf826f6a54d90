"""Child processes that never outlive their owner, and how to recognise a process again.

`start` runs a command under a guard: a small process in a session of its own that holds one end of a pipe whose other end
the owner holds. The pipe closes when the owner calls `stop`, and also when the owner is killed with SIGKILL. Either way the
guard stops the command and everything that the command started: SIGTERM, wait, SIGKILL.
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
LAST_SECONDS = 5.0  # for the command itself, once everything that it started has ended
KILL_SECONDS = 5.0  # for the kernel to remove killed processes
OUT_OF_TIME = 124  # exit code of a command that was stopped at its limit, the same as timeout(1)


def start(
    command: Sequence[str],
    cwd: Path,
    environment: dict[str, str],
    output: int | IO[str] | None,
    grace: float = GRACE_SECONDS,
    limit: float = math.inf,
) -> subprocess.Popen[str]:
    """Start a command under a guard, and return the guard.

    `output`: a file or subprocess.PIPE that gets stdout and stderr as one text stream; None: both are inherited. The command
    is stopped after `limit` seconds; stopping means SIGTERM, and SIGKILL `grace` seconds later. The guard exits with the
    command's own exit code (128 + n if signal n ended it), or with OUT_OF_TIME.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.common.process", str(grace), str(limit), *command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def stop(guard: subprocess.Popen[str]) -> int:
    """Stop the command and everything that it started, wait until they are gone, and return the guard's exit code."""
    assert guard.stdin is not None
    guard.stdin.close()
    if guard.stdout is not None and not guard.stdout.closed:
        for _ in guard.stdout:  # processes that write to a full pipe could not end
            pass
        guard.stdout.close()
    return guard.wait()


def start_service(
    command: Sequence[str], cwd: Path, environment: dict[str, str], log: IO[str]
) -> subprocess.Popen[bytes]:
    """Start a command that outlives this process, in a session of its own; stdout and stderr go to `log`."""
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def stop_trees(roots: Collection[psutil.Process], grace: float) -> None:
    """SIGTERM to the processes; after `grace` seconds SIGKILL to whatever is left of them and of all their descendants."""
    trees = set(roots)
    for root in roots:
        trees |= descendants(root)
    send(roots, signal.SIGTERM)
    wait_gone(roots, grace)
    send(trees, signal.SIGKILL)
    wait_gone(trees, KILL_SECONDS)


def identity(process: psutil.Process) -> str:
    """A string that names a process of this machine even when its pid is used again.

    It holds the pid and the time between the boot and the start of the process. Unlike the time of day of the start, that does
    not change when the clock is set.
    """
    return f"{process.pid}:{process.create_time() - psutil.boot_time():.2f}"


def find(name: str) -> psutil.Process | None:
    """The running process of this `identity`; None if it has ended, even if its pid is in use again."""
    try:
        process = psutil.Process(int(name.partition(":")[0]))
        return process if identity(process) == name and is_alive(process) else None
    except (psutil.NoSuchProcess, ValueError):
        return None


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs; a zombie, which nobody has waited for, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def descendants(process: psutil.Process) -> set[psutil.Process]:
    """All processes below this one."""
    try:
        return set(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def send(processes: Iterable[psutil.Process], number: int) -> None:
    """Send a signal to those that still run; psutil does not signal a pid that is in use again."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def wait_gone(processes: Collection[psutil.Process], seconds: float) -> bool:
    """Wait until all have ended, at most `seconds`; returns whether they have. psutil.wait_procs would wait for zombies."""
    deadline = time.monotonic() + seconds
    while any(is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _family() -> set[psutil.Process]:
    """All descendants of this process, and the orphans that are still in its session."""
    family = descendants(psutil.Process())
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and os.getsid(process.pid) == os.getpid():
                family.add(process)
        except (ProcessLookupError, PermissionError):
            continue
    return family


def _stop_command(command: subprocess.Popen[bytes], grace: float) -> None:
    """Stop the command's descendants first, then the command: DVC releases its locks when its stage has been stopped."""
    family = _family()
    below = {process for process in family if process.pid != command.pid}
    send(below, signal.SIGTERM)
    wait_gone(below, grace)
    try:
        command.wait(LAST_SECONDS if below else 0)
    except subprocess.TimeoutExpired:
        command.terminate()
        try:
            command.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            pass
    send(family | _family(), signal.SIGKILL)


def _guard(command: Sequence[str], grace: float, limit: float) -> int:
    """Run the command until it ends, the pipe closes or its time is over; leave no process of it behind."""

    def terminate(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, terminate)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + limit
    out_of_time = False
    try:
        while child.poll() is None and not out_of_time and not select.select([sys.stdin], [], [], 0.05)[0]:
            out_of_time = time.monotonic() >= deadline
    finally:
        _stop_command(child, grace)
    code = child.wait()
    if out_of_time:
        return OUT_OF_TIME
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(_guard(sys.argv[3:], float(sys.argv[1]), float(sys.argv[2])))
