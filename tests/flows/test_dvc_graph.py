"""Walking a real DVC project: which stages run, and what a failed or stopped stage leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from flows import dvc_graph
from flows.workspace import prepare
from tasks.common.errors import UserError
from tasks.config.params import set_value
from tests.support.dvc_project import STAGES, dvc, ran, set_command

TARGETS = ("promote", "report")


def _walk(root: Path) -> None:
    for stage in dvc_graph.order(root, TARGETS):
        if not dvc_graph.is_unchanged(root, stage.name):
            dvc_graph.run_stage(root, stage.name, {})


def test_order_puts_parents_first_and_leaves_out_what_no_target_needs(workspace: Path) -> None:
    plan = dvc_graph.order(workspace, TARGETS)
    assert [stage.name for stage in plan] == STAGES
    assert plan[5].parents == ("curate", "sample_poses")
    names = [stage.name for stage in dvc_graph.order(workspace, ["promote"])]
    assert names == ["mannequin", "extract@mannequin", "curate", "train_poses", "promote"]
    pictures = workspace.parent / "pictures"
    pictures.mkdir()
    set_value(workspace / "params.yaml", "raw.parts", {"pictures": str(pictures)})
    assert "mannequin" not in [stage.name for stage in dvc_graph.order(workspace, TARGETS)]


def test_order_does_not_depend_on_the_order_of_the_file(workspace: Path) -> None:
    graph = YAML().load(workspace / "dvc.yaml")
    graph["stages"] = dict(reversed(list(graph["stages"].items())))
    YAML().dump(graph, workspace / "dvc.yaml")
    plan = dvc_graph.order(workspace, TARGETS)
    assert {stage.name for stage in plan} == set(STAGES)
    for number, stage in enumerate(plan):
        assert set(stage.parents) <= {earlier.name for earlier in plan[:number]}


def test_an_unknown_target_and_a_broken_graph_are_user_errors(workspace: Path) -> None:
    with pytest.raises(UserError, match=r"no stage 'nope'; it has mannequin, extract@mannequin"):
        dvc_graph.order(workspace, ["nope"])
    (workspace / "dvc.yaml").write_text("stages: {a: {cmd: 'echo ${nothing}'}}")
    with pytest.raises(UserError, match="DVC cannot read this workspace"):
        dvc_graph.order(workspace, ["a"])


def test_walking_stage_by_stage_leaves_the_lock_of_plain_repro(workspace: Path) -> None:
    lock = workspace / "dvc.lock"
    by_repro = lock.read_bytes()
    assert all(dvc_graph.is_unchanged(workspace, stage) for stage in STAGES)
    lock.unlink()
    shutil.rmtree(workspace / "data/poses")
    for out in ("dataset", "weights", "samples", "promoted"):
        (workspace / out).unlink()
    dvc(workspace, "config", "--local", "cache.dir", str(workspace.parent / "empty"))  # nothing to restore outputs from
    _walk(workspace)
    assert ran(workspace) == STAGES
    assert lock.read_bytes() == by_repro
    assert dvc(workspace, "status").strip() == "Data and pipelines are up to date."


def test_a_changed_parameter_reruns_its_stage_and_those_that_depend_on_it(workspace: Path) -> None:
    set_value(workspace / "params.yaml", "poses.seed", 7)
    _walk(workspace)
    assert ran(workspace) == ["train_poses", "sample_poses", "report", "promote"]


def test_a_stage_with_the_same_output_as_before_reruns_nothing_else(workspace: Path) -> None:
    set_value(workspace / "params.yaml", "extract.min_side", 65)
    _walk(workspace)
    assert ran(workspace) == ["extract@mannequin"]


def test_a_tampered_output_is_noticed(workspace: Path) -> None:
    (workspace / "dataset").chmod(0o644)
    (workspace / "dataset").write_text("tampered")
    assert not dvc_graph.is_unchanged(workspace, "curate")
    assert dvc_graph.is_unchanged(workspace, "extract@mannequin")


@pytest.mark.parametrize(
    ("command", "sentence", "code"),
    [
        ("echo 'contrapposto: Nobody was found.' >&2; exit 3", "Nobody was found.", 3),
        ("echo a trace; exit 7", "Stage curate stopped with exit code 7; its output is above.", 1),
    ],
)
def test_a_failed_stage_keeps_its_own_sentence_and_exit_code(
    workspace: Path, capsys: pytest.CaptureFixture[str], command: str, sentence: str, code: int
) -> None:
    set_command(workspace, "curate", command)
    with pytest.raises(UserError) as failure:
        dvc_graph.run_stage(workspace, "curate", {})
    assert (str(failure.value), failure.value.code) == (sentence, code)
    assert capsys.readouterr().out == ("a trace\n" if code == 1 else "")


def test_a_missing_dependency_is_named(workspace: Path) -> None:
    shutil.rmtree(workspace / "data/poses")
    with pytest.raises(UserError, match=r"curate .*poses"):
        dvc_graph.run_stage(workspace, "curate", {})


def test_a_missing_file_is_named_in_words() -> None:
    told = "ERROR: failed to reproduce 'extract@run': [Errno 2] No such file or directory: '/w/models/pose.task'"
    failure = dvc_graph._failure("extract@run", told)
    assert "/w/models/pose.task" in str(failure) and "Errno" not in str(failure) and failure.code == 2


def test_output_is_printed_line_by_line_without_dvcs_own_messages(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_command(
        workspace, "promote", "cp weights promoted; echo to stdout; echo to stderr >&2; echo $MINE; which python"
    )
    dvc_graph.run_stage(workspace, "promote", {"MINE": "reaches the stage"})
    python = str(Path(sys.executable).parent / "python")
    assert capsys.readouterr().out.splitlines() == ["to stdout", "to stderr", "reaches the stage", python]


def test_an_interrupt_stops_the_stage_and_releases_its_locks(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_command(workspace, "curate", "sleep 99 & echo $!; wait")

    def interrupted(line: str, **_: object) -> None:
        children.append(int(line))
        raise KeyboardInterrupt

    children: list[int] = []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("builtins.print", interrupted)
        dvc_graph.run_stage(workspace, "curate", {})
    assert not psutil.pid_exists(children[0]) or psutil.Process(children[0]).status() == psutil.STATUS_ZOMBIE
    assert (workspace / ".dvc/tmp/rwlock").read_text() == "{}"
    set_command(workspace, "curate", "cat data/poses/*/* > dataset")
    dvc_graph.run_stage(workspace, "curate", {})


def test_a_held_lock_is_waited_for(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_graph, "LOCK_DELAY_SECONDS", 0.5)
    holder = subprocess.Popen(["sleep", "99"])  # stands for a DVC that is still there
    rwlock = workspace / ".dvc/tmp/rwlock"
    written = {"pid": holder.pid, "cmd": "dvc repro curate"}
    rwlock.write_text(json.dumps({"read": {}, "write": {str(workspace / "dataset"): written}}))
    (workspace / "dataset").unlink()

    def release() -> None:
        time.sleep(1.0)
        holder.kill()
        holder.wait()

    thread = threading.Thread(target=release)
    thread.start()
    try:
        dvc_graph.run_stage(workspace, "curate", {})
    finally:
        thread.join()
    assert (workspace / "dataset").exists()


def test_push_and_pull_restore_lost_files(workspace: Path) -> None:
    dvc(workspace, "push")
    for name in (".dvc/cache", "data/poses", "dataset", "weights", "samples", "promoted", "reports"):
        path = workspace / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    dvc(workspace, "pull")
    assert dvc(workspace, "status").strip() == "Data and pipelines are up to date."


def test_an_unreachable_remote_stops_only_push(workspace: Path) -> None:
    dvc(workspace, "remote", "modify", "--local", "local", "url", "http://127.0.0.1:9/gone")
    set_value(workspace / "params.yaml", "poses.seed", 7)
    _walk(workspace)
    assert ran(workspace)[0] == "train_poses"
    with pytest.raises(subprocess.CalledProcessError):
        dvc(workspace, "push")
    assert all(dvc_graph.is_unchanged(workspace, stage) for stage in STAGES)
    dvc(workspace, "remote", "modify", "--local", "local", "url", str(workspace.parent / "back"))
    dvc(workspace, "push")
    shutil.rmtree(workspace / ".dvc/cache")
    (workspace / "weights").unlink()
    dvc(workspace, "pull")
    assert dvc(workspace, "status").strip() == "Data and pipelines are up to date."


def test_only_a_new_part_is_extracted_and_a_removed_part_loses_its_rows(workspace: Path) -> None:
    for part in ("monday", "tuesday"):
        (workspace / "data/raw" / part).mkdir()
        (workspace / "data/raw" / part / "a").write_text(f"{part}\n")
    prepare(workspace)
    _walk(workspace)
    assert ran(workspace)[:3] == ["extract@monday", "extract@tuesday", "curate"]
    assert (workspace / "dataset").read_text() == "0\nmonday\ntuesday\n"
    (workspace / "data/raw/tuesday/b").write_text("more\n")
    prepare(workspace)
    _walk(workspace)
    assert ran(workspace)[:2] == ["extract@tuesday", "curate"]
    shutil.rmtree(workspace / "data/raw/monday")
    assert list(prepare(workspace).raw.parts) == ["mannequin", "tuesday"]
    _walk(workspace)
    assert ran(workspace)[0] == "curate"
    assert (workspace / "dataset").read_text() == "0\ntuesday\nmore\n"
    assert not (workspace / "data/poses/monday").exists()
