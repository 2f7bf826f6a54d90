"""The flows with a real Prefect server, DVC and MLflow: states, lineage, failures, and the command that runs a flow."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.schemas.objects import StateType

from flows import dvc_graph
from flows import workspace as workspaces
from flows.private_server import Server
from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.config.params import Raw, load, set_value
from tests.support.dvc_project import STAGES, ran, set_command

COMMAND = [sys.executable, "-m", "flows", "train-poses"]


def _state(root: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> Any:
    """The last state of a flow run in the workspace."""
    from flows.train_poses import train_poses

    monkeypatch.chdir(root)
    return train_poses(**parameters, return_state=True)


def _task_runs(flow_run_id: Any) -> dict[str, str]:
    """Stage -> name of its last state, as the server has it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    wanted = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
    with get_client(sync_client=True) as client:
        deadline = time.monotonic() + 20  # the server writes task runs down a little later
        while time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=wanted)
            if runs and all(run.state and run.state.is_final() for run in runs):
                break
            time.sleep(0.2)
    return {run.name: str(run.state_name) for run in runs}


def _mlflow_runs(root: Path) -> list[Any]:
    from mlflow import MlflowClient

    store = root / "mlflow.db"
    if not store.exists():
        return []
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("contrapposto")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def test_every_stage_is_skipped_if_nothing_has_changed(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_graph, "run_stage", None)  # no DVC process may be started
    state = _state(workspace, monkeypatch)
    assert (state.type, state.name) == (StateType.COMPLETED, "Skipped")
    assert _task_runs(state.state_details.flow_run_id) == dict.fromkeys(STAGES, "Skipped")
    assert ran(workspace) == []
    assert _mlflow_runs(workspace) == []  # a run that ran no stage leaves none


def test_completed_and_failed_stages_are_recorded(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_value(workspace / "params.yaml", "mannequin.seed", 5)
    (workspace / "dvc.yaml").write_text(
        (workspace / "dvc.yaml").read_text().replace("cp poses dataset", "touch dataset")
    )
    state = _state(workspace, monkeypatch)
    assert state.is_completed(), state
    assert ran(workspace) == STAGES
    flow_run = state.state_details.flow_run_id
    assert _task_runs(flow_run) == dict.fromkeys(STAGES, "Completed")
    (run,) = _mlflow_runs(workspace)
    assert run.info.status == "FINISHED"
    assert run.data.tags["prefect.flow_run_id"] == str(flow_run)
    assert run.data.tags["stage.curate"] == "Completed"
    environment = (workspace / "stage.env").read_text().splitlines()
    assert f"PREFECT__FLOW_RUN_ID={flow_run}" in environment
    assert f"CONTRAPPOSTO_PIPELINE_RUN={run.info.run_id}" in environment

    set_command(workspace, "curate", "echo 'contrapposto: Nobody was found.' >&2; exit 3")
    state = _state(workspace, monkeypatch)
    assert state.is_failed()
    assert state.message == "Nobody was found."
    assert state.result(raise_on_failure=False).code == 3
    states = _task_runs(state.state_details.flow_run_id)
    assert states == {"mannequin": "Skipped", "extract@mannequin": "Skipped", "curate": "Failed"}
    failed = next(other for other in _mlflow_runs(workspace) if other.info.run_id != run.info.run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["stage.curate"] == "Failed"


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server's address, and the JSON that was posted to it."""
    received: list[dict[str, Any]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/hook", received
        listening.shutdown()
        thread.join()


def test_the_webhook_is_notified_of_the_outcome(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch, webhook: tuple[str, list[dict[str, Any]]]
) -> None:
    address, received = webhook
    set_value(workspace / "params.yaml", "notify.webhook", address)
    assert _state(workspace, monkeypatch).name == "Skipped"
    assert received == []  # nothing was made
    set_value(workspace / "params.yaml", "poses.seed", 5)
    assert _state(workspace, monkeypatch).is_completed()
    outcome = json.dumps({"promote": False, "reasons": ["It is worse."]})
    set_command(
        workspace,
        "promote",
        f"mkdir -p reports/promote; echo '{outcome}' > reports/promote/promote.json; cp weights promoted",
    )
    assert _state(workspace, monkeypatch).is_completed()
    set_command(workspace, "curate", "echo 'contrapposto: Nobody was found.' >&2; exit 3")
    assert _state(workspace, monkeypatch).is_failed()
    told = [(message["event"], message["sentence"]) for message in received]
    promoted = ("promoted", "The new models are now the champion.")
    assert told == [promoted, ("refused", "It is worse."), ("failed", "Nobody was found.")]
    assert received[1]["report"] == str(workspace / "reports/report.html") and received[1]["mlflow_run"]
    set_value(workspace / "params.yaml", "notify.webhook", "http://127.0.0.1:9/gone")
    state = _state(workspace, monkeypatch)
    assert state.message == "Nobody was found."  # not the failure of the webhook


def test_retrain_does_nothing_if_nothing_has_changed_or_another_run_holds_the_workspace(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train_poses import retrain

    monkeypatch.chdir(workspace)
    state: Any = retrain(return_state=True)
    assert (state.name, state.message) == ("Skipped", "Nothing has changed since the last run.")
    set_value(workspace / "params.yaml", "curate.seed", 5)
    with workspaces.alone(workspace):
        state = retrain(return_state=True)
    assert state.name == "Skipped" and "Another pipeline run" in state.message
    assert ran(workspace) == []
    state = retrain(return_state=True)
    assert state.is_completed() and ran(workspace) == ["curate"]


def test_either_all_changes_are_written_into_params_or_none(workspace: Path) -> None:
    from flows.param_changes import Changes

    changes = Changes(pictures={"size": 48, "patch": 6}, generate={"pose": {"nose": [0.0, -1.5, 0.0]}})
    changed = workspaces.prepare(workspace, changes=changes)
    assert (changed.pictures.size, changed.pictures.patch) == (48, 6)  # neither is valid alone
    assert changed.generate.pose == {"nose": [0.0, -1.5, 0.0]}
    before = (workspace / "params.yaml").read_text()
    assert "# pixels" in before
    with pytest.raises(UserError, match="size must be a multiple of patch"):
        workspaces.prepare(workspace, changes=Changes(pictures={"patch": 7}, poses={"seed": 3}))
    assert (workspace / "params.yaml").read_text() == before
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Changes(poses={"images": 0})
    with pytest.raises(ValueError, match="Extra inputs"):
        Changes(poses={"imgs": 1})


def test_invalid_parameters_fail_the_flow_with_a_sentence(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "params.yaml").write_text("nonsense: 1")
    state = _state(workspace, monkeypatch)
    assert state.is_failed()
    assert state.message.startswith("params.yaml: ")
    assert state.result(raise_on_failure=False).code == 2


def test_raw_is_written_into_params_and_mannequin_restores_the_default(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = workspace.parent / "pictures"
    with pytest.raises(DataError, match=r"no folder .*pictures"):
        workspaces.prepare(workspace, str(pictures))
    assert load(workspace / "params.yaml").raw == Raw(folder="data/raw", parts={"mannequin": "data/raw/mannequin"})
    for folder in (pictures, workspace / "data/raw/mine"):
        folder.mkdir()
        (folder / "a.jpg").touch()
    only = Raw(folder=None, parts={"pictures": str(pictures)})
    assert workspaces.prepare(workspace, str(pictures)).raw == only
    assert str(pictures) in capsys.readouterr().out
    assert workspaces.prepare(workspace).raw == only
    assert workspaces.prepare(workspace, str(workspace / "data/raw/mine")).raw.parts == {"mine": "data/raw/mine"}
    shutil.rmtree(workspace / "data/raw/mine")
    assert workspaces.prepare(workspace, "mannequin").raw == Raw(
        folder="data/raw", parts={"mannequin": "data/raw/mannequin"}
    )


def test_dvc_works_without_git(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(workspace / ".git")
    workspaces.prepare(workspace)
    assert dvc_graph.is_unchanged(workspace, "promote")


def test_invalid_parameters_stop_the_command_before_prefect_is_imported(workspace: Path) -> None:
    set_value(workspace / "params.yaml", "pictures.patch", 8)
    text = (workspace / "params.yaml").read_text().replace("patch: 8", "patch: 7")
    (workspace / "params.yaml").write_text(text)
    code = (
        "import sys; from flows.__main__ import main; code = main(['train-poses'])\n"
        "assert not {'prefect', 'mlflow', 'dvc'} & set(sys.modules); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=workspace, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "contrapposto: params.yaml: pictures: size must be a multiple of patch (7), got 64.\n"


def test_a_second_run_in_a_workspace_is_refused(workspace: Path) -> None:
    with workspaces.alone(workspace):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), workspaces.alone(workspace):
            pass
    with workspaces.alone(workspace):
        pass


def _with_database(root: Path, server: Server) -> None:
    """Give the workspace's private server a migrated database: the migration takes 5 s."""
    home = root / paths.PREFECT
    home.mkdir(parents=True)
    with sqlite3.connect(server.home / "prefect.db") as made, sqlite3.connect(home / "prefect.db") as mine:
        made.backup(mine)


@pytest.mark.slow
def test_the_command_ends_with_the_sentence_and_code_of_the_failed_stage(
    workspace: Path, standing_server: Server
) -> None:
    _with_database(workspace, standing_server)
    set_command(workspace, "promote", "echo 'contrapposto: Not this time.' >&2; exit 3")
    result = subprocess.run(COMMAND, cwd=workspace, capture_output=True, text=True, start_new_session=True)
    assert result.returncode == 3, result.stderr
    assert result.stderr.splitlines()[-1] == "contrapposto: Not this time."
    assert "Traceback" not in result.stderr + result.stdout
    assert "[6/7] report: unchanged" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_command_leaves_no_process(
    workspace: Path, standing_server: Server, number: signal.Signals, code: int
) -> None:
    _with_database(workspace, standing_server)
    set_command(workspace, "promote", "echo promote >> runs.log; sleep 999")
    command = subprocess.Popen(
        COMMAND, cwd=workspace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    log = workspace / "runs.log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "promote" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    below = psutil.Process(command.pid).children(recursive=True)
    assert any("sleep" in process.name() for process in below)
    command.send_signal(number)
    _, errors = command.communicate(timeout=60)
    assert command.returncode == code
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(below, timeout=40)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    if number != signal.SIGKILL:
        assert [run.info.status for run in _mlflow_runs(workspace)] == ["KILLED"]


@pytest.mark.slow
@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_the_command_with_nothing_to_do_prints_where_the_results_are(workspace: Path, proxy: str | None) -> None:
    ways = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= dict.fromkeys(ways, proxy) if proxy else {}  # one that leads nowhere
    result = subprocess.run(COMMAND, cwd=workspace, env=environment, capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stderr == ""
    assert "persons kept  3" in result.stdout
    assert f"report  {workspace / 'reports/report.html'}" in result.stdout
    assert [line.split()[-1] for line in result.stdout.splitlines()[: len(STAGES)]] == ["unchanged"] * len(STAGES)
