"""What stands for longer than one command: Prefect's server, MLflow's, a worker, and a watch on the data.

`up` starts what is not up, `down` stops it, `status` looks. Every service is a process in a session of its own, its log
and its record (pid and the moment it started, so that a reused pid is never taken for it) in `.contrapposto/services`.
A service manager that does this itself runs `foreground` instead, see docs/operations.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from flows import private_server
from tasks import paths
from tasks.common import files, process_guard
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.registry import tracking

NAMES = ("prefect", "mlflow", "worker", "watch")  # in the order in which they start
POOL = "contrapposto"
START_SECONDS = 300.0  # on a very busy machine; measured on an idle one: Prefect 11 s, MLflow 6 s
RUN_SECONDS = 60.0  # for a flow run to stop its stage, which may write a checkpoint, and to say so
STOP_SECONDS = 20.0
HEARTBEAT_SECONDS = 30  # of a flow run, the least that Prefect allows
LOG_LINES = 15


@dataclass(frozen=True)
class Service:
    """A command to keep running. `health`: an address that answers 200 once it is ready; `port`: what it listens on."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    address: str = ""
    health: str = ""
    port: int | None = None
    deployed: bool = False  # works on what is deployed, so that it starts when the deployments are on the server


@dataclass(frozen=True)
class Status:
    """What `status` found. `state`: up, down, or silent (the process is there and does not answer)."""

    name: str
    state: str
    pid: int | None
    since: float | None
    address: str


def _home(root: Path) -> Path:
    return root / paths.SERVICES


def api_url(params: Params) -> str:
    """Where the standing Prefect server is, or would be."""
    return f"http://127.0.0.1:{params.services.prefect_port}/api"


def prefect_environment(params: Params, root: Path) -> dict[str, str]:
    """The environment of everything that talks to the standing Prefect server, and of the server itself."""
    return private_server.settings(root.resolve() / paths.PREFECT) | {
        "PREFECT_API_URL": api_url(params),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        # with the other storage a restart of the server ends every run whose deployment has a concurrency limit
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_CLIENT_MAX_RETRIES": "12",  # of a request while the server is being restarted: minutes
    }


def services(params: Params, root: Path) -> list[Service]:
    """All services of a workspace, in the order in which they are started."""
    prefect = prefect_environment(params, root)
    database = params.services.prefect_database
    api = prefect | ({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {})
    python, port = [sys.executable, "-m"], params.services.prefect_port
    listen = ["--host", "127.0.0.1", "--port"]
    all_services = [
        Service(
            "prefect",
            [*python, "prefect", "server", "start", *listen, str(port)],
            api,
            f"http://127.0.0.1:{port}",
            f"{api_url(params)}/health",
            port,
        )
    ]
    if not params.tracking.store.startswith(("http://", "https://")):  # else somebody else's server is used
        port = params.services.mlflow_port
        command = tracking.server_command(params.tracking, root, port)
        page = f"http://127.0.0.1:{port}"
        all_services.append(Service("mlflow", command, dict(os.environ), page, f"{page}/health", port))
    worker = [*python, "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    output = {"PYTHONUNBUFFERED": "1", "PREFECT_LOGGING_LOG_PRINTS": "true"}
    all_services.append(Service("worker", worker, prefect | output, deployed=True))
    if params.retrain.watch_seconds:
        all_services.append(Service("watch", [*python, "flows.watcher"], prefect | output, deployed=True))
    return all_services


def _process(root: Path, name: str) -> psutil.Process | None:
    """The service's process, if it is the one that was started here and still runs."""
    path = _home(root) / f"{name}.json"
    if not path.is_file():
        return None
    record = files.read_json(path)
    try:
        process = psutil.Process(record["pid"])
        same = abs(process.create_time() - record["started"]) < 0.05 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def answers(url: str) -> bool:
    """Whether a GET of the address gives 200 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def status(params: Params, root: Path) -> list[Status]:
    """How every service is."""
    found = []
    for service in services(params, root):
        process = _process(root, service.name)
        state = "down" if process is None else "up" if not service.health or answers(service.health) else "silent"
        pid, since = (process.pid, process.create_time()) if process else (None, None)
        found.append(Status(service.name, state, pid, since, service.address))
    return found


def standing(params: Params, root: Path) -> bool:
    """Whether this workspace's own Prefect server is up and answers."""
    return _process(root, "prefect") is not None and answers(f"{api_url(params)}/health")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    _home(root).mkdir(parents=True, exist_ok=True)
    with open(_home(root) / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(root: Path, service: Service) -> None:
    if service.port is not None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", service.port))
            except OSError:
                raise UserError(
                    f"Port {service.port} is taken by another program; choose another services.{service.name}_port "
                    "in params.yaml."
                ) from None
    with open(_home(root) / f"{service.name}.log", "a", encoding="utf-8") as log:
        started = subprocess.Popen(
            service.command,
            cwd=root,
            env=service.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    created = psutil.Process(started.pid).create_time()
    files.write_json(_home(root) / f"{service.name}.json", {"pid": started.pid, "started": created})


def _wait(root: Path, service: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _process(root, service.name) is not None and time.monotonic() < deadline:
        if not service.health or answers(service.health):
            return
        time.sleep(0.1)
    log = _home(root) / f"{service.name}.log"
    last = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
    print(last, file=sys.stderr)
    raise UserError(f"The service {service.name} did not start; its log is {log}.", code=1)


def up(params: Params, root: Path, say: Callable[[str], None] = print) -> None:
    """Start what is not up, wait until it answers, and put the deployments of prefect.yaml on the server.

    Raises UserError, with the service's last lines on stderr, if one does not start; what was up before stays up.
    """
    with _alone(root):
        wanted = services(params, root)
        missing = [service for service in wanted if _process(root, service.name) is None]
        for deployed in (False, True):
            if deployed and any(service.deployed for service in wanted):
                _deploy(root, params, say)
            for service in missing:
                if service.deployed is deployed:
                    _start(root, service)
            for service in wanted:
                if service.deployed is deployed:
                    _wait(root, service)
                    what = "started" if service in missing else "is up"
                    say(f"{service.name:8} {what:8} {service.address}".rstrip())


def _deploy(root: Path, params: Params, say: Callable[[str], None]) -> None:
    """Put pool, deployments and automations on the server, unless they are there as the files say."""
    digest = hashlib.sha256(params.services.model_dump_json().encode())
    for path in (root / "prefect.yaml", *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    record = _home(root) / "deployed"
    if record.is_file() and record.read_text() == digest.hexdigest():
        return
    say("putting the deployments of prefect.yaml on the server")
    made = subprocess.run(
        [sys.executable, "-m", "flows.deploy"],
        cwd=root, env=prefect_environment(params, root), capture_output=True, text=True,
    )  # fmt: skip
    if made.returncode:
        print(made.stdout + made.stderr, file=sys.stderr)
        raise UserError("The deployments of prefect.yaml could not be put on the server; what it said is above.", 1)
    files.write_bytes(record, digest.hexdigest().encode())


def down(root: Path, say: Callable[[str], None] = print) -> None:
    """Stop everything, last started first: flow runs end and say so while there is a server to say it to.

    It goes by the records alone: what params.yaml says may have changed. A record whose pid now belongs to another
    process is only removed.
    """
    with _alone(root):
        for name in reversed(NAMES):
            process = _process(root, name)
            if process is not None:
                if name == "worker":
                    _end(process.children(), RUN_SECONDS)
                _end([process], STOP_SECONDS)
            say(f"{name:8} {'stopped' if process else 'was down'}")
            (_home(root) / f"{name}.json").unlink(missing_ok=True)


def _end(processes: Sequence[psutil.Process], grace: float) -> None:
    """TERM to the processes, and KILL to them and all below them that are left after `grace` seconds."""
    family = set(processes)
    for process in processes:
        family |= set(_below(process))
    for process in processes:
        _signal(process, signal.SIGTERM)
    process_guard.gone(processes, grace)
    for process in family:
        _signal(process, signal.SIGKILL)
    process_guard.gone(family, seconds=5)


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # refuses a pid that has been reused
    except psutil.NoSuchProcess:
        pass


def foreground(params: Params, root: Path, name: str) -> NoReturn:
    """Become the service: what a service manager such as systemd runs."""
    known = {service.name: service for service in services(params, root)}
    if name not in known:
        raise UserError(f"There is no service {name!r} here; there are {', '.join(known)}.")
    service = known[name]
    os.chdir(root)
    os.execve(service.command[0], list(service.command), service.environment)


def show(found: Sequence[Status], root: Path) -> None:
    """Print the state of the services, and where their logs are."""
    for entry in found:
        since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(entry.since)) if entry.since else ""
        pid = f"pid {entry.pid}" if entry.pid else ""
        print(f"{entry.name:8} {entry.state:7} {pid:12} {since:27} {entry.address}".rstrip())
    print(f"logs in {_home(root)}")
