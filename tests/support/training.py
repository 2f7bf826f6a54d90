"""Trainings of tiny models, in this process or in one of their own, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from diffusion_core.training.trainer import Trainer
from tasks.common import log
from tasks.config.params import load
from tasks.train import stage
from tests.support.project import PROJECT
from tests.support.workspaces import write_params, write_shards


def checkpoints(root: Path, model: str = "poses") -> list[Path]:
    """The checkpoints of all trainings in a workspace, oldest first."""
    return sorted(root.glob(f".contrapposto/training/{model}/*/checkpoint-*.safetensors"), key=lambda path: path.name)


@contextmanager
def interrupted_at(image: int) -> Iterator[None]:
    """Interrupt the training in this block before its step at this image."""
    step = Trainer.step

    def interrupt(trainer: Trainer) -> object:
        if trainer.nimg == image:
            raise KeyboardInterrupt
        return step(trainer)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "step", interrupt)
        yield


def start_training(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Train the poses in a process of its own, the leader of its group; what is printed goes to the log."""
    command = [sys.executable, "-m", "tasks", "train", "poses", *arguments, "--root", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    with (root / "log.txt").open("ab") as file:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=file, stderr=file, start_new_session=True)


def train_here(root: Path, *arguments: str) -> None:
    """Train the poses in this process, which spares the imports; what is printed goes to the log."""
    log.to_stdout()
    torch.set_num_threads(1)  # as many as the processes of `start_training` have: sums depend on it
    with (root / "log.txt").open("a") as file, redirect_stdout(file):
        stage.run(load(root / "params.yaml"), root, "poses", *arguments)


def log_text(root: Path) -> str:
    """What the trainings in a workspace have printed."""
    return (root / "log.txt").read_text()


def workspace(root: Path, **changes: object) -> Path:
    """A workspace with shards of simple figures and tiny models; changes as in `write_params`. Returns its folder."""
    write_params(root, **changes)
    write_shards(root)
    return root


def outputs(root: Path) -> tuple[bytes, bytes]:
    """The bytes of the trained pose model and of what is told about its training."""
    folder = root / "artifacts/poses"
    return (folder / "model.safetensors").read_bytes(), (folder / "training.json").read_bytes()


def mlflow_client(root: Path) -> MlflowClient:
    """A client of the workspace's MLflow database."""
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def mlflow_runs(root: Path) -> list[Any]:
    """All MLflow runs of the workspace."""
    client = mlflow_client(root)
    return list(client.search_runs([experiment.experiment_id for experiment in client.search_experiments()]))


def metric_steps(root: Path) -> dict[str, list[int]]:
    """The steps of each metric of the workspace's only run, which has ended well."""
    runs, client = mlflow_runs(root), mlflow_client(root)
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    return {key: [m.step for m in client.get_metric_history(runs[0].info.run_id, key)] for key in runs[0].data.metrics}
