"""Two nodes, simulated on one machine: one is killed, both run again, and the bits are those of one undisturbed node."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.train import launch
from tests.support.project import PROJECT
from tests.support.training import checkpoints, log_text, outputs, start_training, workspace


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start_node(root: Path, rank: int, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "flows", "train", "poses", "--nodes", "2", "--node-rank", str(rank)]
    command += ["--rendezvous", f"127.0.0.1:{port}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    with (root / "log.txt").open("ab") as file:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=file, stderr=file, start_new_session=True)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The nodes of a test; those that still run at its end are killed."""
    nodes: list[subprocess.Popen[bytes]] = []
    yield nodes
    for node in nodes:
        if node.poll() is None:
            _kill_node(node)


def _kill_node(node: subprocess.Popen[bytes]) -> None:
    """SIGKILL to everything on the node at once, as if its machine had lost power."""
    process = psutil.Process(node.pid)
    for each in [process, *process.children(recursive=True)]:
        each.send_signal(signal.SIGKILL)
    node.wait()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "told to stop"])
def test_a_training_on_two_nodes_survives_the_end_of_one(
    end: str, tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    exact = {"poses__ranks": 2, "poses__images": 1024}
    whole, root = (workspace(tmp_path / name, **exact) for name in ("whole", "nodes"))
    child = start_training(whole)
    assert child.wait() == 0, log_text(whole)
    nodes = [_start_node(root, rank, port) for port in [_free_port()] for rank in (0, 1)]
    started += nodes
    while not checkpoints(root):
        assert all(node.poll() is None for node in nodes), log_text(root)
        time.sleep(0.005)
    if end == "killed":
        _kill_node(nodes[1])
    else:
        nodes[1].send_signal(signal.SIGTERM)
        assert nodes[1].wait(timeout=120) == launch.STOPPED, log_text(root)
    assert nodes[0].wait(timeout=120) == launch.STOPPED, log_text(root)
    assert not (root / "artifacts/poses/model.safetensors").exists()
    nodes = [_start_node(root, rank, port) for port in [_free_port()] for rank in (0, 1)]
    started += nodes
    assert [node.wait() for node in nodes] == [0, 0], log_text(root)
    assert log_text(root).count("resuming from image") == 1
    assert outputs(root) == outputs(whole)
