"""Preparing a workspace: a refused command changes nothing, parameters are written only if they work, and git is optional."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import dvc_graph, run_here, services
from flows import workspace as workspaces
from flows.param_changes import Changes
from flows.private_server import Server
from tasks.common import git
from tasks.common.errors import UserError
from tasks.config.params import load
from tests.support.dvc_project import STAGES, ran


def _state(root: Path) -> dict[str, bytes]:
    """Everything that a command could have written too early."""
    files = [root / "params.yaml", *root.glob(".dvc/config*"), *(root / "data/poses").rglob("*")]
    return {str(path): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture
def delivery(workspace: Path) -> Path:
    """A folder of pictures that is not a part yet, in a workspace that has extracted another one."""
    folder = workspace.parent / "pictures"
    folder.mkdir()
    (folder / "a.jpg").touch()
    (workspace / "data/raw/arrived").mkdir()
    return folder


def test_a_refused_flow_changes_nothing(
    workspace: Path, delivery: Path, prefect_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.train_poses import curate, train_poses

    monkeypatch.chdir(workspace)
    before = _state(workspace)
    with workspaces.alone(workspace):
        for flow in (train_poses, curate):
            state: Any = flow(raw=str(delivery), changes={"poses": {"seed": 3}}, return_state=True)
            assert state.is_failed() and isinstance(state.result(raise_on_failure=False), workspaces.Held)
    assert _state(workspace) == before


def test_the_command_leaves_writing_to_the_flow(
    workspace: Path, delivery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(run_here, "_run", lambda *_: 1)
    monkeypatch.setattr(services, "standing", lambda *_: True)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    before = _state(workspace)
    run_here.run_flow("train-poses", raw=str(delivery))
    assert _state(workspace) == before


@pytest.mark.parametrize("arguments", [["parts"], ["stage", "curate"]])
def test_commands_that_write_are_refused_while_a_run_holds_the_workspace(
    workspace: Path, delivery: Path, arguments: list[str]
) -> None:
    before = _state(workspace)
    with workspaces.alone(workspace):
        result = subprocess.run(
            [sys.executable, "-m", "flows", *arguments], cwd=workspace, capture_output=True, text=True
        )
    assert result.returncode == 2 and "Another pipeline run" in result.stderr
    assert _state(workspace) == before


@pytest.mark.parametrize("raw", [".", "..", "", "data", "data/poses", "reports", ".dvc", "shoot.tmp"])
def test_a_folder_that_overlaps_with_outputs_or_is_ignored_is_refused_before_it_is_written(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, raw: str
) -> None:
    (workspace / "shoot.tmp").mkdir()
    (workspace / "shoot.tmp/a.jpg").touch()
    monkeypatch.chdir(workspace)
    before = _state(workspace)
    with pytest.raises(UserError, match="cannot be the folder of pictures"):
        workspaces.prepare(workspace, raw)
    assert _state(workspace) == before


def test_parameters_that_dvc_does_not_accept_are_taken_back(workspace: Path, delivery: Path) -> None:
    graph = (workspace / "dvc.yaml").read_text()
    (workspace / "dvc.yaml").write_text(
        graph.replace('deps: ["${item}"]', 'deps: ["${item}", "${raw.parts.mannequin}"]')
    )
    before = _state(workspace)
    with pytest.raises(UserError, match="DVC cannot read this workspace"):
        workspaces.prepare(workspace, str(delivery))  # the only part
    assert _state(workspace) == before


@pytest.mark.parametrize("changes", [None, {"poses": {"seed": 3}}])
def test_a_key_that_dvc_must_see_is_named_before_anything_runs(workspace: Path, changes: dict[str, Any] | None) -> None:
    """The typed model has a default for it; DVC has none."""
    path = workspace / "params.yaml"
    path.write_text(re.sub(r"^  min_side: .*\n", "", path.read_text(), flags=re.MULTILINE))
    assert load(path).extract.min_side
    before = _state(workspace)
    with pytest.raises(UserError, match=r"^params\.yaml: extract\.min_side must be there"):
        workspaces.prepare(workspace, changes=None if changes is None else Changes.model_validate(changes))
    assert _state(workspace) == before


def test_a_project_in_a_folder_with_an_odd_name_works_unless_it_has_a_question_mark(workspace: Path) -> None:
    odd = workspace.rename(workspace.with_name("100% of Anna's $x #1 (2)"))
    (odd / "data/raw/5%").mkdir()
    (odd / "data/raw/5%/a").write_text("1\n")
    workspaces.prepare(odd)
    for stage in dvc_graph.order(odd, ["curate"]):
        dvc_graph.run_stage(odd, stage.name, {})
        assert dvc_graph.is_unchanged(odd, stage.name)
    assert (odd / "dataset").read_text() == "1\n0\n"
    with pytest.raises(UserError, match="question mark"):
        workspaces.plan(odd.rename(odd.with_name("why?")))


def test_a_folder_that_is_still_being_copied_is_no_part(workspace: Path) -> None:
    (workspace / "data/raw/half.tmp").mkdir()
    assert list(workspaces.prepare(workspace).raw.parts) == ["mannequin"]
    assert list(load(workspace / "params.yaml").raw.parts) == ["mannequin"]


def _outer_repository(root: Path) -> None:
    """Put a git repository around the workspace that ignores everything, such as that of a home directory."""
    shutil.rmtree(root / ".git")
    subprocess.run(["git", "init", "--quiet"], cwd=root.parent, check=True)
    (root.parent / ".gitignore").write_text("*\n")
    (root.parent / "tracked").touch()
    subprocess.run(["git", "add", "--force", "tracked"], cwd=root.parent, check=True)
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "commit", "--quiet", "-m", "x"], cwd=root.parent, check=True)


def test_a_repository_further_up_that_ignores_the_project_is_not_its_own(workspace: Path) -> None:
    _outer_repository(workspace)
    workspaces.prepare(workspace)
    assert [stage.name for stage in dvc_graph.order(workspace, ["promote", "report"])] == STAGES
    assert git.commit(workspace) is None
    (workspace / "dataset").unlink()
    dvc_graph.run_stage(workspace, "curate", {})
    assert (workspace / "dataset").exists()


def test_a_repository_further_up_that_tracks_the_project_is_its_own(workspace: Path) -> None:
    _outer_repository(workspace)
    subprocess.run(["git", "add", "--force", "workspace/dvc.yaml"], cwd=workspace.parent, check=True)
    assert git.has_repository(workspace) and git.commit(workspace) is not None


def test_an_archive_works_with_local_settings_and_without_the_program_git(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(workspace / ".git")
    programs = workspace.parent / "programs"
    programs.mkdir()
    for name in ("sh", "mkdir", "cat", "cp", "env", "echo"):
        (programs / name).symlink_to(str(shutil.which(name)))
    (workspace / ".dvc/config.local").write_text("[cache]\n    shared = group\n")
    monkeypatch.setenv("PATH", str(programs))
    workspaces.prepare(workspace)
    assert git.commit(workspace) is None
    (workspace / "dataset").unlink()
    dvc_graph.run_stage(workspace, "curate", {})
    assert dvc_graph.is_unchanged(workspace, "curate")
    assert "group" in (workspace / ".dvc/config.local").read_text()
    assert ran(workspace) in ([], ["curate"])  # DVC may restore the output from its cache


def test_a_file_in_the_place_of_the_state_is_one_sentence(workspace: Path) -> None:
    shutil.rmtree(workspace / ".contrapposto", ignore_errors=True)
    (workspace / ".contrapposto").write_text("mine")
    with pytest.raises(UserError, match="is a file"), workspaces.alone(workspace):
        pass
    assert (workspace / ".contrapposto").read_text() == "mine"


def test_parameters_behind_a_link_are_written_there(workspace: Path, delivery: Path) -> None:
    shared = workspace.parent / "shared.yaml"
    (workspace / "params.yaml").rename(shared)
    (workspace / "params.yaml").symlink_to(shared)
    workspaces.prepare(workspace, str(delivery))
    assert (workspace / "params.yaml").is_symlink() and list(load(shared).raw.parts) == ["pictures"]


def test_damaged_settings_of_dvc_are_one_sentence(workspace: Path) -> None:
    shutil.rmtree(workspace / ".git")
    (workspace / ".dvc/config.local").write_text("no_scm = true\n")
    with pytest.raises(UserError, match=r"config\.local cannot be read"):
        workspaces.prepare(workspace)
