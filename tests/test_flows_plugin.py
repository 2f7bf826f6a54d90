"""`prefect.yaml` on a real server: bare names, and schedules that do create runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

from flows import leash
from flows.plugin import full_name
from flows.server import Server, settings


def _prefect(server: Server, *arguments: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    environment = settings(server.home) | {"PREFECT_API_URL": server.api_url}
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def deployed(prefect_server: Server) -> Iterator[Server]:
    """The server with the project's deployments on it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="contrapposto", type="process"))
    made = _prefect(prefect_server, "deploy", "--all")
    assert made.returncode == 0, made.stdout + made.stderr
    yield prefect_server


def test_full_name() -> None:
    assert full_name("train-poses") == "train-poses/train-poses"
    assert full_name("train-poses/nightly") == "train-poses/nightly"


def test_importing_prefect_with_the_plugin_prints_nothing() -> None:
    code = "from prefect.client.orchestration import PrefectClient as C; print(C.read_deployment_by_name.__wrapped__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert "read_deployment_by_name" in result.stdout


def test_a_deployment_runs_by_its_bare_name(deployed: Server) -> None:
    from prefect.client.orchestration import get_client

    made = _prefect(deployed, "deployment", "run", "train-poses", "--param", "raw=null")
    assert made.returncode == 0, made.stdout + made.stderr
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        deployment = client.read_deployment_by_name("train-poses/train-poses")
    assert [run.state_name for run in runs if run.deployment_id == deployment.id] == ["Scheduled"]
    assert deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options and deployment.concurrency_options.collision_strategy == "CANCEL_NEW"


@pytest.mark.slow
def test_an_activated_schedule_creates_runs(deployed: Server) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/retrain")
        (schedule,) = deployment.schedules
        assert not schedule.active and schedule.slug == "weekly"
    assert _prefect(deployed, "deployment", "schedule", "resume", "retrain/retrain", str(schedule.id)).returncode == 0
    deadline = time.monotonic() + 90
    runs: list[object] = []
    with get_client(sync_client=True) as client:
        while not runs and time.monotonic() < deadline:
            runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
            time.sleep(0.5)
    assert runs


@pytest.mark.slow
def test_a_worker_runs_the_deployed_flow(deployed: Server, workspace: Path) -> None:
    (workspace / "prefect.yaml").write_text((PROJECT / "prefect.yaml").read_text())
    (workspace / "flows").mkdir()
    (workspace / "flows/train_poses.py").write_text((PROJECT / "flows/train_poses.py").read_text())
    made = _prefect(deployed, "deploy", "--name", "curate", cwd=workspace)
    assert made.returncode == 0, made.stdout + made.stderr
    environment = settings(deployed.home) | {"PREFECT_API_URL": deployed.api_url}
    with open(workspace / "worker.log", "w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "contrapposto"]
        worker = leash.start(command, workspace, environment, log)
    try:
        made = _prefect(deployed, "deployment", "run", "curate/curate", "--watch", "--watch-timeout", "120")
    finally:
        leash.release(worker)
    assert made.returncode == 0, made.stdout + made.stderr + (workspace / "worker.log").read_text()
    assert "unchanged" in (workspace / "worker.log").read_text()
    assert os.path.exists(workspace / "poses")
