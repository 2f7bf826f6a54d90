"""Training: interrupted equals uninterrupted, and the number of processes changes nothing but rounding."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from workspaces import PROJECT, write_params, write_shards

from tasks import checkpoint, files
from tasks.models import Examples
from tasks.params import load
from tasks.train import digest

CHECKPOINT = ".contrapposto/training/poses/checkpoint.safetensors"


def _start(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tasks", "train", "poses", "--root", str(root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    log = (root / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log, start_new_session=True)


def _train(root: Path) -> None:
    assert _start(root).wait(240) == 0, (root / "log.txt").read_text()


def _workspace(root: Path, **changes: object) -> Path:
    write_params(root, **changes)
    write_shards(root)
    return root


def _outputs(root: Path) -> tuple[bytes, bytes]:
    folder = root / "artifacts/poses"
    return (folder / "model.safetensors").read_bytes(), (folder / "training.json").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = _workspace(tmp_path_factory.mktemp("whole"))
    _train(root)
    return root


def _metric_steps(root: Path) -> dict[str, list[int]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    return {key: [m.step for m in client.get_metric_history(runs[0].info.run_id, key)] for key in runs[0].data.metrics}


def test_the_loss_falls(uninterrupted: Path) -> None:
    curve = [loss for _, loss in files.read_json(uninterrupted / "artifacts/poses/training.json")["loss"]]
    assert np.mean(curve[-8:]) < 0.95 * np.mean(curve[:4])


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_and_run_again_gives_the_same_bits_and_one_run(
    signum: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    root = _workspace(tmp_path / "killed")
    child = _start(root)
    while not (root / CHECKPOINT).is_file():
        assert child.poll() is None, (root / "log.txt").read_text()
        time.sleep(0.005)
    time.sleep(0.05)
    os.killpg(child.pid, signum)
    assert child.wait(60) == (-signal.SIGKILL if signum == signal.SIGKILL else 143)
    _, meta = checkpoint.load(root / CHECKPOINT)
    assert 0 < meta["trainer"]["nimg"] < 2048
    _train(root)
    assert "going on from image" in (root / "log.txt").read_text()
    assert _outputs(root) == _outputs(uninterrupted)
    steps = _metric_steps(root)
    assert steps == _metric_steps(uninterrupted)
    assert all(steps[name] == sorted(set(steps[name])) for name in steps)
    assert steps["loss"] == [64 * (i + 1) for i in range(32)]


def test_a_checkpoint_of_other_parameters_is_not_continued(uninterrupted: Path, tmp_path: Path) -> None:
    root = _workspace(tmp_path / "other", poses__learning_rate=1e-3, poses__images=256)
    target = root / CHECKPOINT
    target.parent.mkdir(parents=True)
    target.write_bytes((uninterrupted / CHECKPOINT).read_bytes())
    _train(root)
    assert "starting anew" in (root / "log.txt").read_text()
    _, meta = checkpoint.load(target)
    assert meta["trainer"]["nimg"] == 256


def test_the_digest_sees_parameters_and_examples() -> None:
    config = load(PROJECT / "params.yaml").poses
    x0, cond = torch.zeros(4, 33, 3), {"vec:category": torch.eye(4)}
    first = digest(config, Examples(x0, cond))
    assert digest(config, Examples(x0.clone(), dict(cond))) == first
    moved = x0.clone()
    moved[3, 32, 2] = 1e-7
    other = {"vec:category": torch.eye(4)[[0, 1, 3, 2]]}
    changed = config.model_copy(update={"learning_rate": 2e-3})
    digests = {
        digest(config, Examples(moved, cond)),
        digest(config, Examples(x0, other)),
        digest(changed, Examples(x0, cond)),
    }
    assert len(digests | {first}) == 4


def test_two_processes_train_the_same_model_and_leave_nobody_behind(uninterrupted: Path, tmp_path: Path) -> None:
    root = _workspace(tmp_path / "ranks", poses__ranks=2)
    _train(root)
    one, two = (files.read_json(r / "artifacts/poses/training.json") for r in (uninterrupted, root))
    assert [n for n, _ in one["loss"]] == [n for n, _ in two["loss"]]
    assert np.allclose([loss for _, loss in one["loss"]], [loss for _, loss in two["loss"]], rtol=1e-3)
    weights = [checkpoint.load(r / "artifacts/poses/model.safetensors")[0] for r in (uninterrupted, root)]
    for name, value in weights[0].items():
        assert np.allclose(value, weights[1][name], atol=2e-3), name


def test_killing_the_launcher_ends_its_ranks(tmp_path: Path) -> None:
    root = _workspace(tmp_path / "orphans", poses__ranks=2, poses__images=1_000_000)
    child = _start(root)
    while not (root / CHECKPOINT).is_file():
        assert child.poll() is None, (root / "log.txt").read_text()
        time.sleep(0.05)
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and two ranks
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
