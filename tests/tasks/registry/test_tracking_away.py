"""MLflow's server is away while a model is trained: the training waits for it, and nothing is lost or told twice."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import private_server
from tasks.common import process
from tasks.config.params import load, set_value
from tasks.registry.tracking import Store
from tasks.registry.ui import server_command
from tests.support.project import PROJECT
from tests.support.workspaces import write_params, write_shards


def _wait(folder: Path, pattern: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not any(folder.glob(pattern)):
        assert time.monotonic() < deadline, f"{pattern} did not come"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_training_outlives_the_servers_absence(tmp_path: Path) -> None:
    port = private_server.free_port()
    write_shards(tmp_path)
    path = write_params(tmp_path)
    command = server_command(load(path).tracking, tmp_path, port)
    set_value(path, "tracking.store", f"http://127.0.0.1:{port}")
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "server.log", "w") as log:
        serving = process.start(command, tmp_path, environment, log, grace=5)
        training = subprocess.Popen(
            [sys.executable, "-m", "tasks", "train", "poses"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
        )
        try:
            _wait(tmp_path / ".contrapposto/training/poses", "*/checkpoint-*.safetensors")
            process.stop(serving)
            time.sleep(20)
            assert training.poll() is None  # it waits
            serving = process.start(command, tmp_path, environment, log, grace=5)
            assert training.wait(timeout=400) == 0
            params = load(path)
            store = Store(params.tracking, tmp_path)
            (run,) = store.client.search_runs([store.experiment])
            assert run.info.status == "FINISHED"
            steps = [point.step for point in store.client.get_metric_history(run.info.run_id, "loss")]
            assert steps == sorted(set(steps)) and steps[-1] == params.poses.images
        finally:
            training.kill()
            training.wait()
            process.stop(serving)
