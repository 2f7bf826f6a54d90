"""Broken links, loops, pipes and the like in a folder of pictures: one reject each, for DVC alone, the flow and the watch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from flows import data_fingerprint, dvc_graph, workspace
from flows.watcher import Watch
from tasks import paths
from tasks.config.params import load
from tasks.extract.findings import Reason
from tasks.extract.poses_table import read_rejects
from tests.support.extraction import MODEL, draw_figures
from tests.support.workspaces import small_project


def make_odd(folder: Path) -> set[str]:
    """A picture and odd entries; returns the names of what is refused."""
    draw_figures(folder, 1)
    (folder / "broken.jpg").symlink_to("gone.jpg")
    (folder / "self").symlink_to("self")
    (folder / "up").symlink_to("..")
    (folder / ".dvcignore").write_text("*.png\n")
    os.mkfifo(folder / "pipe.jpg")
    with chdir(folder), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
    return {"broken.jpg", "self", "up", "pipe.jpg", "socket.jpg"}


def run(root: Path, *command: str) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an odd part in its `data/raw/` and one outside."""
    parts = {"outside": str(tmp_path / "photos"), "inside": "data/raw/inside"}
    return small_project(
        tmp_path / "project", raw={"folder": "data/raw", "parts": parts}, extract__model=str(MODEL), extract__workers=1
    )


def test_odd_entries_are_rejects_and_everything_goes_on(project: Path, tmp_path: Path) -> None:
    odd = make_odd(tmp_path / "photos")
    make_odd(project / "data/raw/inside")
    run(project, "dvc", "repro", "extract@outside", "extract@inside")
    for part in ("outside", "inside"):
        rejects = read_rejects(project / paths.POSES / part)
        assert {reject.source: reject.reason for reject in rejects} == dict.fromkeys(odd, Reason.UNREADABLE)

    again = run(project, "dvc", "repro", "extract@outside", "extract@inside")
    assert "extract@outside' didn't change" in again and "extract@inside' didn't change" in again
    (tmp_path / "photos/self").unlink()
    changed = run(project, "dvc", "repro", "extract@outside", "extract@inside")
    assert "Running stage 'extract@outside'" in changed and "extract@inside' didn't change" in changed

    params = workspace.prepare(project)  # as the flow begins
    stages = ("list_parts", "extract@outside", "extract@inside")
    assert [dvc_graph.is_unchanged(project, stage) for stage in stages] == [True] * 3
    (project / "data/raw/inside/pipe.jpg").unlink()
    params = workspace.prepare(project)
    assert [dvc_graph.is_unchanged(project, stage) for stage in stages] == [True, True, False]

    watch = Watch()
    data_fingerprint.remember(project, data_fingerprint.fingerprint(params, project))
    assert watch.look(params, project) == []
    make_odd(project / "data/raw/another")
    assert watch.look(load(project / "params.yaml"), project) == []  # it may not be complete
    assert watch.look(load(project / "params.yaml"), project) == ["data/raw/another"]


def test_pictures_that_dvc_has_replaced_by_links_are_extracted(project: Path) -> None:
    folder = project / "data/raw/inside"
    draw_figures(folder, 1)
    (folder / "SOURCE.txt").write_text("CC0")
    run(project, "dvc", "config", "cache.type", "symlink")
    run(project, "dvc", "add", "data/raw/inside")
    (picture,) = folder.rglob("*.png")
    assert picture.is_symlink()
    run(project, "tasks", "extract", "inside")
    summary = json.loads((project / paths.POSES / "inside/summary.json").read_text())
    assert (summary["persons"], summary["rejects"], summary["joint_error"]["persons"]) == (1, {}, 1)
    assert json.loads((project / paths.POSES / "inside/provenance.json").read_text()) == {"SOURCE.txt": "CC0"}
