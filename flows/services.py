"""The standing services of a workspace: Prefect's server, MLflow's server, a worker, and a watch for new data.

`up` starts what is not up, `down` stops everything, `status` looks. Every service is a process in a session of its own. Its
log and its record (which process it is) are in `.contrapposto/services`. A service manager such as systemd runs `foreground`
instead, see docs/operations.md.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from flows import private_server
from tasks import paths
from tasks.common import files, ports, process
from tasks.common.environment import without_redirections
from tasks.common.errors import UserError
from tasks.config.params import Params
from tasks.registry import store_location, ui

log = logging.getLogger(__name__)

NAMES = ("prefect", "mlflow", "worker", "watch")  # in the order in which they start
POOL = "contrapposto"
START_SECONDS = 300.0  # on a very busy machine; measured on an idle one: Prefect 11 s, MLflow 6 s
RUN_SECONDS = 60.0  # for a flow run to stop its stage, which may write a checkpoint, and to report its end
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
    needs_deployments: bool = False  # starts only when the deployments are on the server


@dataclass(frozen=True)
class Status:
    """The state of one service: up, down, or silent (the process runs and does not answer)."""

    name: str
    state: str
    pid: int | None
    since: float | None
    address: str


def _home(root: Path) -> Path:
    return root / paths.SERVICES


def api_url(params: Params) -> str:
    """The address of the standing Prefect server's API, whether it is up or not."""
    return f"http://127.0.0.1:{params.services.prefect_port}/api"


def prefect_environment(params: Params, root: Path) -> dict[str, str]:
    """The environment of everything that talks to the standing Prefect server, and of the server itself."""
    return private_server.settings(root.resolve() / paths.PREFECT) | {
        "PREFECT_API_URL": api_url(params),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
        # with the other storage a restart of the server ends every run whose deployment has a concurrency limit
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_CLIENT_MAX_RETRIES": "12",  # of a request while the server restarts: minutes
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
    if not store_location.is_server(params.tracking):  # otherwise the user runs an MLflow server
        port = params.services.mlflow_port
        command = ui.server_command(params.tracking, root, port)
        page = f"http://127.0.0.1:{port}"
        all_services.append(Service("mlflow", command, without_redirections(os.environ), page, f"{page}/health", port))
    worker = [*python, "prefect", "worker", "start", "--pool", POOL, "--type", "process"]
    output = {"PYTHONUNBUFFERED": "1", "PREFECT_LOGGING_LOG_PRINTS": "true"}
    all_services.append(Service("worker", worker, prefect | output, needs_deployments=True))
    if params.retrain.watch_seconds:
        watch = [*python, "flows.watcher"]
        all_services.append(Service("watch", watch, prefect | output, needs_deployments=True))
    return all_services


def _record(root: Path, name: str) -> Path:
    return _home(root) / f"{name}.json"


def _running(root: Path, name: str) -> psutil.Process | None:
    """The service's process, if it is the one that was started here and still runs."""
    record = _record(root, name)
    if not record.is_file():
        return None
    try:
        return process.find(files.read_json(record)["process"])
    except (files.DamagedFile, KeyError, TypeError):
        return None  # after a power failure, which has ended the process too


def running(root: Path) -> list[str]:
    """The names of the services whose processes run, whether they answer or not."""
    return [name for name in NAMES if _running(root, name) is not None]


def answers(url: str) -> bool:
    """Whether a GET of the address gives 200 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False


def status(params: Params, root: Path) -> list[Status]:
    """The state of every service."""
    states = []
    for service in services(params, root):
        running = _running(root, service.name)
        state = "down" if running is None else "up" if not service.health or answers(service.health) else "silent"
        pid, since = (running.pid, running.create_time()) if running else (None, None)
        states.append(Status(service.name, state, pid, since, service.address))
    return states


def standing(params: Params, root: Path) -> bool:
    """Whether this workspace's own Prefect server is up and answers."""
    return _running(root, "prefect") is not None and answers(f"{api_url(params)}/health")


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One `up` or `down` at a time."""
    _home(root).mkdir(parents=True, exist_ok=True)
    with open(_home(root) / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(root: Path, service: Service) -> None:
    if service.port is not None and not ports.is_free(service.port):
        raise UserError(
            f"Port {service.port} is taken by another program; choose another services.{service.name}_port in params.yaml."
        )
    with open(_home(root) / f"{service.name}.log", "a", encoding="utf-8") as output:
        started = process.start_service(service.command, root, service.environment, output)
    files.write_json(_record(root, service.name), {"process": process.identity(psutil.Process(started.pid))})


def _wait(root: Path, service: Service) -> None:
    deadline = time.monotonic() + START_SECONDS
    while _running(root, service.name) is not None and time.monotonic() < deadline:
        if not service.health or answers(service.health):
            return
        time.sleep(0.1)
    output = _home(root) / f"{service.name}.log"
    last = "\n".join(output.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
    print(last, file=sys.stderr)
    raise UserError(f"The service {service.name} did not start; its log is {output}.", code=1)


def up(params: Params, root: Path) -> None:
    """Start what is not up, wait until it answers, and put the deployments of prefect.yaml on the server.

    Raises UserError, with the service's last lines on stderr, if one does not start; what was up before stays up.
    """
    with _alone(root):
        wanted = services(params, root)
        missing = [service for service in wanted if _running(root, service.name) is None]
        for needs_deployments in (False, True):
            group = [service for service in wanted if service.needs_deployments is needs_deployments]
            if needs_deployments and group:
                _deploy(root, params)
            for service in group:
                if service in missing:
                    _start(root, service)
            for service in group:
                _wait(root, service)
                state = "started" if service in missing else "is up"
                log.info(f"{service.name:8} {state:8} {service.address}".rstrip())


def _deploy(root: Path, params: Params) -> None:
    """Put work pool, deployments and automations on the server, unless the files that define them are unchanged."""
    # Deployments name the folder.
    digest = hashlib.sha256(f"{root.resolve()} {params.services.model_dump_json()}".encode())
    for path in (root / "prefect.yaml", *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    record = _home(root) / "deployed"
    if record.is_file() and record.read_text(encoding="utf-8") == digest.hexdigest():
        return
    log.info("putting the deployments of prefect.yaml on the server")
    deployed = subprocess.run(
        [sys.executable, "-m", "flows.deploy"],
        cwd=root, env=prefect_environment(params, root), capture_output=True, text=True,
    )  # fmt: skip
    if deployed.returncode:
        print(deployed.stdout + deployed.stderr, file=sys.stderr)
        raise UserError("The deployments of prefect.yaml could not be put on the server; the output is above.", code=1)
    files.write_bytes(record, digest.hexdigest().encode())


def down(root: Path) -> None:
    """Stop everything, last started first, so that flow runs can still report their end to the server.

    Only the records are read: params.yaml may have changed or be invalid. If the pid in a record now belongs to another
    process, the record is removed and the process is left alone.
    """
    with _alone(root):
        for name in reversed(NAMES):
            running = _running(root, name)
            if running is not None:
                if name == "worker":
                    process.stop_trees(running.children(), RUN_SECONDS)  # the flow runs
                process.stop_trees([running], STOP_SECONDS)
            log.info(f"{name:8} {'stopped' if running else 'was down'}")
            _record(root, name).unlink(missing_ok=True)


def foreground(params: Params, root: Path, name: str) -> NoReturn:
    """Become the service: what a service manager such as systemd runs."""
    known = {service.name: service for service in services(params, root)}
    if name not in known:
        raise UserError(f"There is no service {name!r}; the services are {', '.join(known)}.")
    service = known[name]
    os.chdir(root)
    os.execve(service.command[0], list(service.command), service.environment)


def show(states: Sequence[Status], root: Path) -> None:
    """Print the state of the services, and where their logs are."""
    for entry in states:
        since = time.strftime("since %Y-%m-%d %H:%M:%S", time.localtime(entry.since)) if entry.since else ""
        pid = f"pid {entry.pid}" if entry.pid else ""
        print(f"{entry.name:8} {entry.state:7} {pid:12} {since:27} {entry.address}".rstrip())
    print(f"logs in {_home(root)}")
