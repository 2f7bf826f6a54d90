"""Failures during a run (time limit, full disk, unreachable MLflow server): how it ends, and that the next one resumes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.private_server import Server
from tasks.common import process
from tasks.config.params import set_value
from tasks.registry import tracking
from tests.support.dvc_project import ran, rename_stage, set_command

DECISION = "reports/promote/promote.json"
PROMOTED = f"""cp weights promoted; mkdir -p reports/promote; echo '{{"promote": true, "reasons": []}}' > {DECISION}"""


def _state(root: Path, monkeypatch: pytest.MonkeyPatch, flow: str = "train_poses") -> Any:
    """The last state of a flow run in the workspace."""
    from flows import train_poses

    monkeypatch.chdir(root)
    return getattr(train_poses, flow)(return_state=True)


def _statuses(store: Path) -> list[str]:
    """Of the MLflow runs, the latest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    return [run.info.status for run in client.search_runs([e.experiment_id for e in client.search_experiments()])]


def _gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_command_is_stopped_at_its_time_limit_with_all_its_children(tmp_path: Path) -> None:
    code = "import subprocess; child = subprocess.Popen(['sleep', '99']); print(child.pid, flush=True); child.wait()"
    began = time.monotonic()
    guard = process.start([sys.executable, "-c", code], tmp_path, dict(os.environ), subprocess.PIPE, limit=3)
    assert guard.stdout is not None
    child = int(guard.stdout.readline())
    assert guard.wait() == process.OUT_OF_TIME and 3 <= time.monotonic() - began < 20
    assert _gone(child)
    process.stop(guard)


@pytest.mark.parametrize(("flow", "seconds"), [("train_poses", 8), ("curate", 4)])
def test_a_run_over_its_time_limit_ends_as_timed_out_and_the_next_resumes(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch, flow: str, seconds: int
) -> None:
    stopped = {"train_poses": "promote", "curate": "dataset_card"}[flow]
    rename_stage(workspace, "promote", stopped)  # `curate` has no MLflow run around it
    set_command(workspace, stopped, "echo $$ > pid; sleep 99; cp weights promoted")
    set_value(workspace / "params.yaml", "limits.hours", seconds / 3600)
    state = _state(workspace, monkeypatch, flow)
    assert (state.type.name, state.name) == ("FAILED", "TimedOut")
    assert state.message.startswith(f"{stopped} was stopped") and "limits.hours" in state.message
    assert state.result(raise_on_failure=False).code == 1
    pid = workspace / "pid"
    assert not pid.exists() or _gone(int(pid.read_text()))  # on a very busy machine the stage has not even started
    if flow == "train_poses":
        assert _statuses(workspace / "mlflow.db") == ["FAILED"]
    ran(workspace)
    set_value(workspace / "params.yaml", "limits.hours", None)
    set_command(workspace, stopped, f"echo last >> runs.log; {PROMOTED}")
    assert _state(workspace, monkeypatch, flow).is_completed()
    assert ran(workspace) == ["last"]  # finished stages do not run again


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def _fill(disk: Path, left: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return filler


@pytest.mark.slow
def test_a_full_disk_fails_the_run_and_the_next_resumes(
    workspace: Path, small_disk: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = small_disk / "workspace"
    shutil.copytree(workspace, root, symlinks=True)
    set_command(root, "mannequin", "echo mannequin >> runs.log; python -m tasks mannequin")  # a real stage
    (root / "dvc.yaml").write_text((root / "dvc.yaml").read_text().replace("cat ${item}/*", "ls ${item}"))
    set_value(root / "params.yaml", "mannequin.count", 24)
    filler = _fill(small_disk, 400_000)
    store = small_disk.parent / "mlflow.db"  # on another disk
    set_value(root / "params.yaml", "tracking.store", f"sqlite:///{store}")
    state = _state(root, monkeypatch)
    assert state.is_failed() and state.message.startswith("The disk is full"), state.message
    assert not list(root.rglob("mannequin.tmp")) and shutil.disk_usage(small_disk).free > 200_000
    assert _statuses(store) == ["FAILED"]
    filler.unlink()
    assert _state(root, monkeypatch).is_completed()
    assert ran(root)[:2] == ["mannequin", "mannequin"]
    assert len(list(root.glob("data/raw/mannequin/*/*.png"))) == 24


def test_a_failed_stage_keeps_its_sentence_when_mlflow_cannot_write(
    workspace: Path, small_disk: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_value(workspace / "params.yaml", "tracking.store", f"sqlite:///{small_disk}/mlflow.db")
    fill = f"dd if=/dev/zero of={small_disk}/filler bs=1k 2> /dev/null;"
    set_command(workspace, "promote", f"{fill} echo 'contrapposto: Not this time.' >&2; exit 3")
    state = _state(workspace, monkeypatch)
    assert state.is_failed() and state.message == "Not this time."
    state = _state(workspace, monkeypatch)  # the disk is still full: no run starts that could not be recorded
    assert state.is_failed() and "MLflow's store" in state.message and "database or disk is full" in state.message
    (small_disk / "filler").unlink()
    set_command(workspace, "promote", f"{PROMOTED}; {fill} true")
    state = _state(workspace, monkeypatch)
    assert state.is_failed() and "MLflow's store" in state.message
    (small_disk / "filler").unlink()
    set_command(workspace, "promote", f"{PROMOTED} && true")
    monkeypatch.setattr(tracking, "_alive", lambda owner: False)  # the runs before were processes of their own
    assert _state(workspace, monkeypatch).is_completed()
    assert sorted(_statuses(small_disk / "mlflow.db")) == ["FINISHED", "KILLED", "KILLED"]


def test_a_run_does_not_start_while_mlflows_server_is_unreachable(
    workspace: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    set_value(workspace / "params.yaml", "tracking.store", "http://127.0.0.1:9")
    set_value(workspace / "params.yaml", "poses.seed", 5)
    state = _state(workspace, monkeypatch)
    assert state.is_failed()
    assert state.message == "MLflow's store http://127.0.0.1:9 does not answer; run again when it is back."
    assert ran(workspace) == []
