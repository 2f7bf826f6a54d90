"""`prefect.yaml` on a real server: bare names, checked parameters, triggers, and schedules that create runs."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.private_server import Server, settings
from flows.watcher import EVENT, RESOURCE
from tasks.common import process
from tasks.config.params import set_value
from tests.support.dvc_project import ran, rename_stage
from tests.support.prefect_api import make_pool
from tests.support.project import PROJECT


def _prefect(server: Server, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = settings(server.home) | {"PREFECT_API_URL": server.api_url}
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def _deployable(folder: Path) -> None:
    """Make a folder deployable. A deployment runs where it was deployed from, so tests do not deploy the project itself."""
    (folder / "flows").mkdir(parents=True)
    for name in ("prefect.yaml", "pyproject.toml", "flows/train_poses.py", "flows/on_prefect.py"):
        (folder / name).write_bytes((PROJECT / name).read_bytes())


@dataclass(frozen=True)
class Deployed:
    """A server with the project's deployments on it, and the folder that they were deployed from."""

    server: Server
    folder: Path

    def prefect(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line of Prefect in that folder."""
        return _prefect(self.server, self.folder, *arguments)


@pytest.fixture(scope="module")
def deployed(prefect_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    folder = tmp_path_factory.mktemp("deployed") / "project"
    _deployable(folder)
    make_pool("contrapposto")
    made = _prefect(prefect_server, folder, "deploy", "--all")
    assert made.returncode == 0, made.stdout + made.stderr
    return Deployed(prefect_server, folder)


def test_full_name() -> None:
    from flows.plugin import full_name  # not above: Prefect must load its plugin itself, before anything else does

    assert full_name("train-poses") == "train-poses/train-poses"
    assert full_name("train-poses/nightly") == "train-poses/nightly"


def test_importing_prefect_with_the_plugin_prints_nothing() -> None:
    code = "from prefect.client.orchestration import PrefectClient as C; print(C.read_deployment_by_name.__wrapped__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    assert "read_deployment_by_name" in result.stdout


def test_a_deployment_runs_by_its_bare_name(deployed: Deployed) -> None:
    from prefect.client.orchestration import get_client

    made = deployed.prefect("deployment", "run", "train-poses", "--param", "raw=null")
    assert made.returncode == 0, made.stdout + made.stderr
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        deployment = client.read_deployment_by_name("train-poses/train-poses")
    assert [run.state_name for run in runs if run.deployment_id == deployment.id] == ["Scheduled"]
    assert deployment.global_concurrency_limit and deployment.global_concurrency_limit.limit == 1
    assert deployment.concurrency_options and deployment.concurrency_options.collision_strategy == "CANCEL_NEW"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"poses": {"images": -4}}, "-4 is less than the minimum of 1"),
        ({"poses": {"imgs": 4}}, "'imgs' was unexpected"),
        ({"generate": {"alias": "king"}}, "'king' is not one of"),
    ],
)
def test_invalid_parameters_are_refused_before_a_run_is_created(
    deployed: Deployed, wrong: dict[str, Any], message: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("generate")  # by its bare name
        before = len(client.read_flow_runs())
        with pytest.raises(PrefectHTTPStatusError) as refused:
            client.create_flow_run_from_deployment(deployment.id, parameters={"changes": wrong})
        assert refused.value.response.status_code == 409 and message in refused.value.response.text
        assert len(client.read_flow_runs()) == before


def test_the_event_of_new_data_triggers_a_retraining(deployed: Deployed) -> None:
    from prefect.automations import Automation

    automation = Automation.read(name="retrain on new data")
    assert isinstance(automation, Automation) and automation.enabled
    assert automation.trigger.expect == {EVENT}
    assert f"{RESOURCE}.*" in str(automation.trigger.match)


@pytest.mark.slow
def test_an_activated_schedule_creates_runs(deployed: Deployed) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("retrain/retrain")
        (schedule,) = deployment.schedules
        assert not schedule.active and schedule.slug == "weekly"
    assert deployed.prefect("deployment", "schedule", "resume", "retrain/retrain", str(schedule.id)).returncode == 0
    deadline = time.monotonic() + 90
    runs: list[object] = []
    with get_client(sync_client=True) as client:
        while not runs and time.monotonic() < deadline:
            runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
            time.sleep(0.5)
    assert runs


@pytest.mark.slow
def test_a_worker_runs_the_deployed_flow(prefect_server: Server, workspace: Path) -> None:
    _deployable(workspace)
    # a pool of its own: a worker takes all runs of its pool
    deployments = (workspace / "prefect.yaml").read_text()
    (workspace / "prefect.yaml").write_text(deployments.replace("    name: contrapposto", "    name: trial"))
    rename_stage(workspace, "curate", "dataset_card")  # the target of the flow `curate`
    set_value(workspace / "params.yaml", "curate.seed", 5)  # otherwise DVC restores the run of the old name
    make_pool("trial")
    made = _prefect(prefect_server, workspace, "deploy", "--name", "curate")
    assert made.returncode == 0, made.stdout + made.stderr
    environment = settings(prefect_server.home) | {"PREFECT_API_URL": prefect_server.api_url}
    with open(workspace / "worker.log", "w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "trial"]
        worker = process.start(command, workspace, environment, log)
    try:
        made = _prefect(prefect_server, workspace, "deployment", "run", "curate", "--watch", "--watch-timeout", "120")
    finally:
        process.stop(worker)
    output = (workspace / "worker.log").read_text()
    assert made.returncode == 0, made.stdout + made.stderr + output
    assert "[2/3] extract@mannequin: unchanged" in output
    assert ran(workspace) == ["curate"]  # the name that its command writes
