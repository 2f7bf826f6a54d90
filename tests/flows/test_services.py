"""The standing services: `up`, `down` and `status`, and flow runs that survive failures of the services."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import private_server, services
from flows.services import Service
from tasks import paths
from tasks.common import files, process
from tasks.common.errors import UserError
from tasks.config.params import Params, load, set_value
from tests.support.dvc_project import ran, set_command
from tests.support.prefect_api import flow_runs
from tests.support.project import PROJECT
from tests.support.workspaces import write_params


def _page(port: int) -> Service:
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    return Service("mlflow", command, dict(os.environ), address, f"{address}/", port)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Params, Path]:
    """A workspace whose one service is a small web server."""
    params = load(write_params(tmp_path))
    one = _page(private_server.free_port())
    monkeypatch.setattr(services, "services", lambda params, root: [one])
    return params, tmp_path


def _states(params: Params, root: Path) -> dict[str, str]:
    return {entry.name: entry.state for entry in services.status(params, root)}


def test_up_starts_once_and_down_stops(page: tuple[Params, Path], capsys: pytest.CaptureFixture[str]) -> None:
    params, root = page
    services.up(params, root)
    first = services.status(params, root)[0]
    assert first.state == "up" and first.pid is not None
    services.up(params, root)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1].strip() for line in lines] == ["started", "is up"]
    assert services.status(params, root)[0].pid == first.pid
    services.down(root)
    assert not psutil.pid_exists(first.pid) or psutil.Process(first.pid).status() == psutil.STATUS_ZOMBIE
    assert _states(params, root) == {"mlflow": "down"}
    capsys.readouterr()
    services.down(root)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split()[0] == "prefect" and last.endswith("was down")


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_record_is_that_of_no_process(page: tuple[Params, Path], content: str) -> None:
    """As a power failure may leave it."""
    params, root = page
    record = root / paths.SERVICES / "mlflow.json"
    files.write_bytes(record, content.encode())
    assert _states(params, root) == {"mlflow": "down"}
    services.down(root)
    assert not record.exists()


def test_a_process_that_reuses_a_pid_is_never_killed(page: tuple[Params, Path]) -> None:
    params, root = page
    stranger = subprocess.Popen(["sleep", "99"])
    home = root / ".contrapposto/services"
    home.mkdir(parents=True)
    pid, _, started = process.identity(psutil.Process(stranger.pid)).partition(":")
    (home / "mlflow.json").write_text(json.dumps({"process": f"{pid}:{float(started) - 100:.2f}"}))
    try:
        assert _states(params, root) == {"mlflow": "down"}
        services.down(root)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_taken_port_is_a_sentence(page: tuple[Params, Path]) -> None:
    params, root = page
    services.up(params, root)
    (root / ".contrapposto/services/mlflow.json").rename(root / "away.json")
    with pytest.raises(UserError, match=r"taken by another program; choose another services\.mlflow_port"):
        services.up(params, root)
    (root / "away.json").rename(root / ".contrapposto/services/mlflow.json")
    services.down(root)


def test_a_service_that_dies_is_a_sentence_with_its_last_lines(
    page: tuple[Params, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params, root = page
    broken = Service("mlflow", [sys.executable, "-c", "exit('no such table')"], {}, health="http://127.0.0.1:9/")
    monkeypatch.setattr(services, "services", lambda params, root: [broken])
    with pytest.raises(UserError, match="did not start; its log is"):
        services.up(params, root)
    assert "no such table" in capsys.readouterr().err


def test_down_needs_no_valid_parameters(page: tuple[Params, Path]) -> None:
    params, root = page
    services.up(params, root)
    pid = services.status(params, root)[0].pid
    (root / "params.yaml").write_text("nonsense: 1")
    command = [sys.executable, "-m", "flows", "down"]
    result = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(PROJECT)}, capture_output=True)
    assert result.returncode == 0 and pid is not None
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def _until(condition: Callable[[], Any], seconds: float) -> Any:
    """What `condition` returns as soon as that is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds:.0f} s")


class ServicesUp:
    """A workspace with all services up, and the commands that a user types in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.params = root, load(root / "params.yaml")
        self.environment = services.prefect_environment(self.params, root) | {"PYTHONPATH": str(PROJECT)}

    def call(self, *command: str, code: int = 0) -> str:
        """What a command prints."""
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=self.root, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def runs(self, deployment: str) -> dict[str, str]:
        """Flow run name -> name of its state, oldest first."""
        return {run["name"]: run["state"]["name"] for run in reversed(self.raw_runs(deployment))}

    def raw_runs(self, deployment: str) -> list[dict[str, Any]]:
        """The runs as the server describes them, the latest first."""
        return flow_runs(self.environment["PREFECT_API_URL"], deployment)

    def start(self, deployment: str = "train-poses") -> None:
        """Ask for a run."""
        self.call("prefect", "deployment", "run", deployment)

    def began(self, stage: str, seconds: float = 120) -> None:
        """Wait until a stage has begun."""
        log = self.root / "runs.log"
        _until(lambda: log.is_file() and stage in log.read_text().split(), seconds)

    def worker(self) -> psutil.Process:
        """The worker's process."""
        pid = {entry.name: entry.pid for entry in services.status(self.params, self.root)}["worker"]
        return psutil.Process(pid)


@pytest.fixture
def house(workspace: Path) -> Iterator[ServicesUp]:
    """The small DVC project of conftest with all services up."""
    (workspace / "flows").mkdir()
    for name in ("prefect.yaml", "pyproject.toml", "flows/train_poses.py", "flows/on_prefect.py"):
        (workspace / name).write_bytes((PROJECT / name).read_bytes())
    for name in ("prefect_port", "mlflow_port"):
        set_value(workspace / "params.yaml", f"services.{name}", private_server.free_port())
    set_value(workspace / "params.yaml", "retrain.watch_seconds", 1.0)
    house = ServicesUp(workspace)
    try:
        house.call("flows", "up")
        ran(workspace)
        yield house
    finally:
        house.call("flows", "down")
        left = [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(workspace)]
        assert left == []


@pytest.mark.slow
def test_a_run_survives_a_restart_of_the_server_and_new_data_start_a_retraining(house: ServicesUp) -> None:
    set_command(
        house.root, "promote", "echo promote >> runs.log; cp weights promoted; while [ -f wait ]; do sleep 0.2; done"
    )
    (house.root / "wait").touch()
    (house.root / "runs.log").unlink(missing_ok=True)
    house.start()
    house.began("promote")
    prefect = house.root / ".contrapposto/services/prefect.json"
    killed = process.find(json.loads(prefect.read_text())["process"])
    assert killed is not None
    killed.kill()
    house.call("flows", "up")
    (house.root / "wait").unlink()
    _until(lambda: house.runs("train-poses") and set(house.runs("train-poses").values()) == {"Completed"}, 120)
    ran(house.root)

    (house.root / "data/raw/delivery").mkdir(parents=True)
    (house.root / "data/raw/delivery/a").write_text("1")
    states = _until(lambda: [s for s in house.runs("retrain").values() if s in ("Skipped", "Completed", "Failed")], 300)
    assert states == ["Completed"] and ran(house.root)[:3] == ["extract@delivery", "curate", "train_poses"]
    house.call("prefect", "deployment", "run", "train-poses", "--watch", "--watch-timeout", "120")


@pytest.mark.slow
def test_down_ends_the_run_and_killed_runs_become_crashed(house: ServicesUp) -> None:
    set_command(house.root, "promote", "echo promote >> runs.log; sleep 999")
    house.start()
    house.began("promote")
    below = house.worker().children(recursive=True)
    house.call("flows", "down")
    _, alive = psutil.wait_procs(below, timeout=40)
    assert [survivor for survivor in alive if survivor.is_running()] == []
    house.call("flows", "up")
    assert list(house.runs("train-poses").values()) == ["Crashed"]

    ran(house.root)
    house.start()
    house.began("promote")
    worker = house.worker()
    below = worker.children(recursive=True)
    for victim in (worker, *worker.children()):
        victim.kill()
    _until(lambda: list(house.runs("train-poses").values())[-1] == "Crashed", 240)
    _, alive = psutil.wait_procs(below, timeout=40)
    assert [survivor for survivor in alive if survivor.is_running()] == []


@pytest.mark.slow
def test_a_cancelled_run_ends_and_missed_schedules_do_not_pile_up(house: ServicesUp) -> None:
    set_command(house.root, "promote", "echo promote >> runs.log; sleep 999")
    house.start()
    house.began("promote")
    below = house.worker().children(recursive=True)
    (name,) = house.runs("train-poses")
    house.call("prefect", "flow-run", "cancel", house.raw_runs("train-poses")[0]["id"])
    _until(lambda: house.runs("train-poses")[name] == "Cancelled", 120)
    _, alive = psutil.wait_procs(below, timeout=40)
    assert [survivor for survivor in alive if survivor.is_running()] == []

    # three runs are due while no worker is there; when it comes back, one of them works
    house.worker().terminate()
    _until(lambda: services.status(house.params, house.root)[2].state == "down", 180)
    set_command(house.root, "promote", "echo promote >> runs.log; sleep 20; cp weights promoted")
    ran(house.root)
    for _ in range(3):
        house.start("retrain")
    house.call("flows", "up")
    _until(lambda: sorted(house.runs("retrain").values()) == ["Cancelled", "Cancelled", "Completed"], 180)
    assert ran(house.root) == ["promote"]
