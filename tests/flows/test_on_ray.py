"""Slices on real Ray clusters of this machine: the bytes of the plain stage, also when workers and nodes are killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.ray_nodes import RayNodes, ray_nodes
from flows import engines
from tasks import paths
from tasks.config.params import load
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tests.support import motion_workspace
from tests.support.extraction import MODEL, draw_figures, outputs, run_extraction
from tests.support.stage_slices import contents
from tests.support.workspaces import small_project

pytest.importorskip("ray")
NODES = 3


@pytest.fixture
def heap(tmp_path: Path) -> Path:
    folder = tmp_path / "raw/heap"
    draw_figures(folder, 12)
    return folder


def _flow(name: str, root: Path, *changes: str) -> str:
    options = [part for change in changes for part in ("--set", change)]
    made = subprocess.run(
        [sys.executable, "-m", "flows", name, *options], cwd=root, env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    return made.stdout


@pytest.mark.slow
def test_the_flow_on_a_cluster_of_its_own_makes_the_shards_of_the_plain_stage(tmp_path: Path) -> None:
    """The built-in pictures, which a stage draws before they are cut into slices."""
    alone, home = (small_project(tmp_path / name, mannequin__count=20) for name in ("alone", "home"))
    _flow("curate", alone)
    output = _flow("curate", home, "engine.kind=ray", "engine.slices=3")
    assert "mannequin: 3 slices" in output
    shards = [{p.name: p.read_bytes() for p in (root / "data/shards").iterdir()} for root in (alone, home)]
    assert shards[0] == shards[1] and len(shards[0]) > 1
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]


@pytest.mark.slow
def test_motion_on_demand_is_the_same_on_a_cluster(tmp_path: Path) -> None:
    tiny = {f"motion__model__{key}": value for key, value in motion_workspace.TINY.items()}
    wish = {"kind": "motion", "count": 6, "seconds": 0.5}
    home = small_project(tmp_path / "home", motion__run=["motion"], generate=wish, **tiny)
    params = load(home / "params.yaml")
    folder = motion_workspace.write_untrained(home, params, ["walk", "wave", "bend"])
    store = Store(params.tracking, home)
    number = store.register(paths.MOTION, folder, paths.sha256(folder), "")
    model_registry.make_champions(store, {paths.MOTION: number}, (paths.MOTION,))
    _flow("generate", home)
    expected = contents(home / paths.GENERATED)
    shutil.rmtree(home / paths.GENERATED)
    output = _flow("generate", home, "engine.kind=ray", "engine.slices=2")
    assert "generate: 3 of 3 blocks from 2 slices" in output
    assert contents(home / paths.GENERATED) == expected and "index.json" in expected


def _worker(cluster: RayNodes, running: psutil.Process) -> int | None:
    worker = cluster.worker(running)
    return worker.pid if worker else None


def _node(cluster: RayNodes, running: psutil.Process) -> int | None:
    node = cluster.node(running)
    return node if node != cluster.nodes[0] else None  # without the head there is no cluster


@pytest.mark.slow
@pytest.mark.parametrize("victim", [_worker, _node])
def test_a_part_is_whole_though_a_worker_or_a_node_is_killed(
    heap: Path, workspace: Path, tmp_path: Path, victim: Callable[[RayNodes, psutil.Process], int | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_extraction(heap, tmp_path / "alone")
    about = load(workspace / "params.yaml").model_dump()
    about["raw"] = {"folder": None, "parts": {"heap": str(heap)}}
    about["extract"] |= {"model": str(MODEL)}
    killed: list[int] = []

    def kill(cluster: RayNodes) -> None:
        while not killed and time.monotonic() < deadline:
            for running in cluster.slices():
                pid = victim(cluster, running)
                if pid is not None and not killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
            time.sleep(0.01)

    with ray_nodes(workspace, NODES) as cluster:
        about["engine"] = {"kind": "ray", "slices": 4, "address": cluster.address}
        (workspace / "params.yaml").write_text(json.dumps(about))
        for name, value in cluster.environment.items():
            monkeypatch.setenv(name, value)
        deadline = time.monotonic() + 300
        killer = threading.Thread(target=kill, args=(cluster,))
        killer.start()
        try:
            engines.extract(load(workspace / "params.yaml"), workspace, ["heap"])
        finally:
            deadline = 0
            killer.join()
    assert killed
    run_extraction(heap, workspace)
    assert outputs(workspace) == outputs(tmp_path / "alone")
    assert json.loads((workspace / ".contrapposto/extract/heap.json").read_text())["extracted"] == 0
