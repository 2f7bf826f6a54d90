"""MLflow's page: its port, its address, and the dataset and source that its table shows."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import private_server
from tasks.config.params import load
from tasks.registry import pipeline_run, ui
from tasks.registry.tracking import Store
from tests.support.project import PROJECT
from tests.support.workspaces import write_params, write_shards


def test_a_taken_port_is_an_error(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        write_params(tmp_path, services__mlflow_port=port)
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        done = subprocess.run(
            [sys.executable, "-m", "tasks.registry.ui"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
    assert done.returncode == 2
    assert re.search(rf"contrapposto: Port {port} is taken.*services\.mlflow_port", done.stderr)
    assert "Traceback" not in done.stderr


def test_the_page_is_served_on_the_port_of_the_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = private_server.free_port()
    params = load(write_params(tmp_path, services__mlflow_port=port))
    served: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, **_: served.append(command) or 3)
    assert ui.serve(params, tmp_path) == 3  # the server's own exit code
    assert served[0][-1] == str(port)
    assert ui.address(params, tmp_path) in capsys.readouterr().out


def test_the_address_shows_the_experiment(tmp_path: Path) -> None:
    params = load(write_params(tmp_path, services__mlflow_port=5678, tracking__experiment="other"))
    experiment = Store(params.tracking, tmp_path).experiment
    page = f"http://127.0.0.1:5678/#/experiments/{experiment}/runs?workflowType=machine_learning"
    assert ui.address(params, tmp_path) == page


def test_a_finished_pipeline_run_has_a_dataset_and_a_source(tmp_path: Path) -> None:
    write_shards(tmp_path)
    params = load(write_params(tmp_path))
    (tmp_path / "reports/summary").mkdir(parents=True)
    (tmp_path / "reports/summary/summary.json").write_text('{"metrics": {}}')
    for _ in range(2):
        run_id = pipeline_run.start(params, tmp_path, None)
        pipeline_run.finish(params, tmp_path, run_id, "FINISHED", {})
        run = Store(params.tracking, tmp_path).client.get_run(run_id)
        (given,) = run.inputs.dataset_inputs
        assert given.dataset.name == "mannequin" and given.dataset.source == '{"uri": "data/shards"}'
        assert run.data.tags["contrapposto.dataset_sha256"].startswith(given.dataset.digest)
        assert '"train": ' in given.dataset.profile
        assert run.data.tags["mlflow.source.name"] == "contrapposto"
