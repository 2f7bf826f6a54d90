"""`python -m tasks`: the user's mistakes end as one line and an exit code, bugs as a traceback."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tasks.__main__ import STAGES, main
from tasks.common.errors import DataError
from tasks.config.params import Params
from tests.support.project import PROJECT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    # With several processes a training tells the same, later: see test_launch.
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text().replace("ranks: auto", "ranks: 1"))
    return tmp_path


def test_an_unknown_stage_is_answered_with_the_names(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nope", "--root", str(root)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("contrapposto: There is no stage 'nope'; the stages are ")
    assert error.count("\n") == 1 and "extract" in error and "__main__" not in error


def test_missing_arguments_and_missing_parameters_are_sentences(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--root", str(root)]) == 2
    assert capsys.readouterr().err == "contrapposto: Stage train: missing a required argument: 'model'.\n"
    assert main(["extract", "--root", str(root / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_data_errors_keep_their_exit_code_and_bugs_their_traceback(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(params: Params, root: Path, what: str) -> None:
        if what == "data":
            raise DataError("Nobody was found.")
        if what == "name":
            raise DataError("There is no folder a\nb\x1b[1m.")
        if what == "disk":
            raise OSError(errno.EROFS, "Read-only file system", "data/poses")
        raise ZeroDivisionError

    monkeypatch.setattr("tasks.__main__.body", lambda stage: run)
    assert main(["any", "data", "--root", str(root)]) == 3
    assert capsys.readouterr().err == "contrapposto: Nobody was found.\n"
    assert main(["any", "name", "--root", str(root)]) == 3
    assert capsys.readouterr().err == "contrapposto: There is no folder a b\N{REPLACEMENT CHARACTER}[1m.\n"
    assert main(["any", "disk", "--root", str(root)]) == 1
    assert capsys.readouterr().err == "contrapposto: data/poses cannot be used: Read-only file system.\n"
    with pytest.raises(ZeroDivisionError):
        main(["any", "bug", "--root", str(root)])


@pytest.mark.parametrize(
    "stage",
    [
        ["curate"], ["shard"], ["dataset_card"], ["train", "poses"], ["train", "codec"], ["sample", "poses"], ["memorization"],
        ["membership_inference"], ["pose_accuracy"], ["codec_quality"], ["fidelity"], ["train_recogniser"],
        ["promote"], ["report"], ["clips"],
        ["sample_motion"], ["motion_quality"], ["promote_motion"], ["motion_page"], ["video_clips"], ["train", "video"],
        ["sample_video"], ["video_quality"], ["promote_video"], ["video_page"],
        ["explain"],
        ["generate"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_stage_before_its_turn_is_one_sentence(
    stage: list[str], root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a workspace in which nothing has run."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert main([*stage, "--root", str(root)]) in (2, 3)
    told = [line for line in capsys.readouterr().err.splitlines() if "mlflow.store.db.utils" not in line]
    assert len(told) == 1 and told[0].startswith("contrapposto: ")


def test_sigterm_runs_finally_blocks(root: Path) -> None:
    code = (
        "import os, signal, sys, tasks.__main__ as command\n"
        "def run(params, root):\n"
        "    try: os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally: print('unwound', flush=True)\n"
        "command.body = lambda stage: run; sys.exit(command.main(['any']))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (143, "unwound\n")


def test_the_command_itself_imports_nothing_heavy(root: Path) -> None:
    code = "import sys, tasks.__main__; assert not {'torch', 'numpy', 'mlflow', 'prefect', 'dvc'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_every_stage_of_the_graph_has_a_function() -> None:
    graph = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text())["stages"]
    commanded = {re.findall(r"sh stage.sh (\w+)", str(stage))[0] for stage in graph.values()}
    assert commanded == set(STAGES)
