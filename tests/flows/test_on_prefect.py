"""One machine, and three workers with their own clones and a real Prefect server, make the same shards."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows import stage_inputs
from flows.private_server import Server, settings
from tasks import paths
from tasks.common import files, process
from tests.support.dvc_project import dvc
from tests.support.extraction import draw_figures
from tests.support.prefect_api import make_pool
from tests.support.project import PROJECT
from tests.support.workspaces import small_project, write_params

POOL = "slices"
WORKERS = 3


def _git(root: Path, *arguments: str) -> None:
    about = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *about, *arguments], cwd=root, check=True, capture_output=True)


def _environment(server: Server, root: Path) -> dict[str, str]:
    """The environment of a process that runs the code in `root` instead of the project's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PREFECT_API_URL": server.api_url, "PYTHONPATH": str(root), "PATH": path}
    return settings(server.home) | own | {"PREFECT_LOGGING_LOG_PRINTS": "true", "OMP_NUM_THREADS": "1"}


def _shards(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / "data/shards").iterdir()}


@pytest.mark.slow
def test_three_workers_make_the_shards_of_one_machine(prefect_server: Server, tmp_path: Path) -> None:
    home = small_project(
        tmp_path / "home", raw={"folder": "data/raw", "parts": {"heap": "data/raw/heap"}}, extract__workers=1
    )
    draw_figures(home / "data/raw/heap", 24)
    dvc(home, "remote", "modify", "local", "url", str(tmp_path / "remote"))
    dvc(home, "add", "data/raw/heap")
    dvc(home, "push", "data/raw/heap.dvc")
    (home / "prefect.yaml").write_text(
        (home / "prefect.yaml").read_text().replace("name: contrapposto\n    job", f"name: {POOL}\n    job")
    )
    _git(home, "add", "--all")
    _git(home, "commit", "-m", "add the part")
    clones = [tmp_path / f"worker{number}" for number in range(WORKERS)]
    for clone in clones:
        _git(tmp_path, "clone", "--quiet", str(home), str(clone))
        (clone / "models").symlink_to(PROJECT / "models")
    alone = tmp_path / "alone"
    shutil.copytree(home, alone, symlinks=True)

    make_pool(POOL)
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--name", "run-slices"]
    subprocess.run(deploy, cwd=home, env=_environment(prefect_server, home), check=True, capture_output=True)
    work = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1"]
    workers = []
    try:
        for clone in clones:
            with open(clone / "worker.log", "w", encoding="utf-8") as log:
                workers.append(process.start(work, clone, _environment(prefect_server, clone), log))
        output = _curate(prefect_server, home, "prefect")
    finally:
        for worker in workers:
            process.stop(worker)
    logs = "\n".join((clone / "worker.log").read_text() for clone in clones)
    assert f"heap: {WORKERS} slices" in output, output + logs
    assert files.read_json(home / ".contrapposto/extract/heap.json")["extracted"] == 0
    extracted = [_extracted(clone) for clone in clones]
    assert sum(extracted) == 24 and max(extracted) < 24, extracted
    left = [path.relative_to(clone / paths.SLICES) for clone in clones for path in (clone / paths.SLICES).rglob("*.*")]
    assert {path.parts[0] for path in left} <= {stage_inputs.INPUTS}  # which workers keep for the next slices
    assert not any((clone / "data/raw/heap").exists() for clone in clones)
    _curate(prefect_server, alone, "local")
    assert _shards(home) == _shards(alone) and len(_shards(home)) > 1


def _extracted(root: Path) -> int:
    """The number of files that a workspace has extracted."""
    if not (root / paths.FINDINGS).exists():
        return 0
    with sqlite3.connect(root / paths.FINDINGS) as db:
        return int(db.execute("select count(*) from findings").fetchone()[0])


def _curate(server: Server, root: Path, kind: str) -> str:
    cut = {"slices": WORKERS, "runs": WORKERS} if kind == "prefect" else {"slices": 0}
    changes = {"engine": {"kind": kind, **cut}}
    code = f"from flows.train_poses import curate; curate(changes={changes})"
    command = [sys.executable, "-c", code]
    made = subprocess.run(
        command, cwd=root, env=_environment(server, root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert made.returncode == 0, made.stdout
    return made.stdout


@pytest.mark.slow
def test_slices_without_a_deployment_are_a_user_error(prefect_server: Server, tmp_path: Path) -> None:
    home = small_project(tmp_path / "home", raw={"folder": "data/raw", "parts": {"heap": "data/raw/heap"}})
    draw_figures(home / "data/raw/heap", 2)
    write_params(
        home, engine={"kind": "prefect", "slices": 2}, raw={"folder": "data/raw", "parts": {"heap": "data/raw/heap"}}
    )
    private = subprocess.run(
        [sys.executable, "-m", "flows", "curate"], cwd=home, env=os.environ | {"PYTHONPATH": str(home)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert private.returncode == 2 and "engine.kind: local" in private.stdout, private.stdout
