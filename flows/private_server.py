"""A private Prefect server on a free loopback port, for the length of one command or of a test session."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tasks.common import process
from tasks.common.environment import without_redirections
from tasks.common.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
START_SECONDS = 300.0  # on a very busy machine; measured on an idle one: 6 s, and 11 s when the database is new


@dataclass(frozen=True)
class Server:
    """A started server; `api_url` answers once `wait` has returned. Until then `lock` keeps others from starting here."""

    api_url: str
    home: Path
    guard: subprocess.Popen[str]
    lock: IO[str]

    def wait(self) -> None:
        """Wait until the server answers. Raises UserError with the path of its log if it does not."""
        with self.lock:
            self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.guard.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.api_url}/health", timeout=5):
                    return
            except (urllib.error.URLError, TimeoutError, ConnectionError):
                time.sleep(0.05)
        raise UserError(f"The Prefect server did not start; its log is {self.home / 'server.log'}.", code=1)

    def stop(self) -> None:
        """Stop the server and wait until it has ended."""
        self.lock.close()
        process.stop(self.guard)


def bypass_proxy() -> None:
    """Let this process and its children connect to servers on this machine directly, without the user's proxy."""
    kept = [name for spelling in ("no_proxy", "NO_PROXY") for name in os.environ.get(spelling, "").split(",")]
    excepted = ",".join(dict.fromkeys(name.strip() for name in (*kept, *LOOPBACK) if name.strip()))
    os.environ.update(no_proxy=excepted, NO_PROXY=excepted)


def settings(home: Path) -> dict[str, str]:
    """This process's environment with Prefect's state in `home` and without the user's Prefect settings."""
    kept = {n: v for n, v in without_redirections(os.environ).items() if not n.startswith("PREFECT_")}
    return kept | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
    }


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(home: Path) -> Server:
    """Start a server whose database and log are in `home`; returns at once, see `Server.wait`.

    Servers may share a database. But two that make its tables at the same time fail, so this waits while another one starts.
    """
    home.mkdir(parents=True, exist_ok=True)
    lock = open(home / "start.lock", "a", encoding="utf-8")
    fcntl.flock(lock, fcntl.LOCK_EX)
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with open(home / "server.log", "w", encoding="utf-8") as log:
        guard = process.start(command, home, settings(home), log)
    return Server(f"http://127.0.0.1:{port}/api", home, guard, lock)
