"""Nothing that was started under a guard outlives its owner, and processes are recognised again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tasks.common import process

# A stage that starts a process in another session which ignores SIGTERM, and prints its pid.
STUBBORN = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"],
    stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(99)
"""


def _start(code: str, tmp_path: Path, grace: float = 1.0) -> subprocess.Popen[str]:
    return process.start([sys.executable, "-c", code], tmp_path, dict(os.environ), subprocess.PIPE, grace)


def _pid(guard: subprocess.Popen[str]) -> int:
    assert guard.stdout is not None
    return int(guard.stdout.readline())


def _ends(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_stop_kills_a_grandchild_in_another_session_that_ignores_sigterm(tmp_path: Path) -> None:
    guard = _start(STUBBORN, tmp_path)
    grandchild = _pid(guard)
    assert process.stop(guard) == 128 + 15
    assert _ends(grandchild, 1)


def test_processes_that_a_command_leaves_behind_are_stopped_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '99']).pid, flush=True); sys.exit(3)"
    guard = _start(code, tmp_path)
    left = _pid(guard)
    assert guard.wait() == 3
    assert _ends(left, 1)
    process.stop(guard)


def test_everything_is_stopped_when_the_owner_is_killed_with_sigkill(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys; from pathlib import Path; from tasks.common import process\n"
        f"guard = process.start([sys.executable, '-c', {STUBBORN!r}], Path('.'), dict(os.environ), subprocess.PIPE, 1)\n"
        "print(guard.pid, guard.stdout.readline(), flush=True); guard.wait()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    guard, grandchild = map(int, owner.stdout.readline().split())
    owner.kill()
    owner.communicate()
    assert _ends(grandchild)
    assert _ends(guard)


def test_the_command_can_clean_up_after_its_children_were_stopped(tmp_path: Path) -> None:
    code = (
        "import subprocess; child = subprocess.Popen(['sleep', '99']); print(child.pid, flush=True)\n"
        "child.wait(); open('cleaned', 'w').close()"
    )
    guard = _start(code, tmp_path)
    _pid(guard)
    process.stop(guard)
    assert (tmp_path / "cleaned").exists()
    assert guard.returncode == 0


def test_output_none_inherits_stdout_and_stderr_separately(tmp_path: Path) -> None:
    command = "import sys; print('out'); print('err', file=sys.stderr)"
    code = (
        "import os, sys; from pathlib import Path; from tasks.common import process\n"
        f"process.start([sys.executable, '-c', {command!r}], Path('.'), dict(os.environ), None).wait()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_a_process_is_found_by_its_identity_until_it_ends() -> None:
    child = subprocess.Popen(["sleep", "99"])
    name = process.identity(psutil.Process(child.pid))
    try:
        assert process.find(name) == psutil.Process(child.pid)
        pid, _, started = name.partition(":")
        assert process.find(f"{pid}:{float(started) - 1:.2f}") is None  # an earlier process of that pid
        assert process.find("") is None
    finally:
        child.kill()
    deadline = time.monotonic() + 20
    while process.find(name) is not None and time.monotonic() < deadline:  # nobody has waited for it: it is a zombie
        time.sleep(0.01)
    assert process.find(name) is None
    child.wait()


def test_stop_trees_kills_descendants_that_ignore_sigterm(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    grandchild = int(parent.stdout.readline())
    process.stop_trees([psutil.Process(parent.pid)], grace=0.5)
    assert parent.wait() == -15
    assert _ends(grandchild, 1)
