"""Nothing that was started on a leash outlives its owner."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tasks.common import process_guard

# A stage that starts a process of its own session, deaf to SIGTERM, and says its pid.
STUBBORN = """
import os, subprocess, sys, time
child = subprocess.Popen(
    [sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(99)"],
    stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(99)
"""


def _start(code: str, tmp_path: Path, grace: float = 1.0) -> subprocess.Popen[str]:
    return process_guard.start([sys.executable, "-c", code], tmp_path, dict(os.environ), subprocess.PIPE, grace)


def _pid(keeper: subprocess.Popen[str]) -> int:
    assert keeper.stdout is not None
    return int(keeper.stdout.readline())


def _ends(pid: int, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_release_kills_a_deaf_grandchild_in_another_session(tmp_path: Path) -> None:
    keeper = _start(STUBBORN, tmp_path)
    grandchild = _pid(keeper)
    process_guard.release(keeper)
    assert keeper.returncode == 128 + 15
    assert _ends(grandchild, 1)


def test_what_a_command_leaves_behind_is_stopped_and_its_exit_code_kept(tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '99']).pid, flush=True); sys.exit(3)"
    keeper = _start(code, tmp_path)
    left = _pid(keeper)
    assert keeper.wait() == 3
    assert _ends(left, 1)
    process_guard.release(keeper)


def test_an_owner_killed_with_sigkill_takes_everything_along(tmp_path: Path) -> None:
    code = (
        "import os, subprocess, sys; from pathlib import Path; from tasks.common import process_guard\n"
        f"keeper = process_guard.start([sys.executable, '-c', {STUBBORN!r}], Path('.'), dict(os.environ), subprocess.PIPE, 1)\n"
        "print(keeper.pid, keeper.stdout.readline(), flush=True); keeper.wait()"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    keeper, grandchild = map(int, owner.stdout.readline().split())
    owner.kill()
    owner.communicate()
    assert _ends(grandchild)
    assert _ends(keeper)


def test_the_command_may_tidy_up_after_what_it_started_was_stopped(tmp_path: Path) -> None:
    code = (
        "import subprocess; child = subprocess.Popen(['sleep', '99']); print(child.pid, flush=True)\n"
        "child.wait(); open('tidied', 'w').close()"
    )
    keeper = _start(code, tmp_path)
    _pid(keeper)
    process_guard.release(keeper)
    assert (tmp_path / "tidied").exists()
    assert keeper.returncode == 0
