"""What all commands share: where they run, without a home folder, and without a reader of their output."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import paths
from tasks.common import command
from tasks.common.environment import provide_home
from tasks.common.errors import UserError
from tests.support.project import PROJECT

NOBODY = """\
import pwd, sys
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
from flows.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters of a workspace; HOME and LOGNAME are restored after the test."""
    (tmp_path / paths.PARAMS).touch()
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("home", ["{root}/nowhere", "{root}/params.yaml", "", "relative"])
def test_a_home_that_cannot_be_used_is_replaced_in_a_workspace_and_refused_elsewhere(
    root: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home.format(root=root))
    provide_home(root)
    assert os.environ["HOME"] == str(root / paths.HOME) and Path(os.environ["HOME"]).is_dir()
    monkeypatch.setenv("HOME", home.format(root=root))
    with pytest.raises(UserError, match="set HOME"):
        provide_home(root / "elsewhere")


def test_a_home_that_can_be_used_is_left_alone(root: Path) -> None:
    provide_home(root)
    assert os.environ["HOME"] == str(root) and not (root / paths.STATE).exists()


def test_a_user_without_a_name_and_a_home_gets_both(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME"):
        monkeypatch.delenv(name)
    provide_home(root)
    assert os.environ["HOME"] == str(root / paths.HOME) and os.environ["LOGNAME"] == str(os.getuid())


def test_a_command_of_a_user_without_a_home_works(workspace: Path) -> None:
    """DVC, for one, looks for its settings there."""
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CONFIG_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, "parts"],
        cwd=workspace, env=environment | {"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "mannequin  data/raw/mannequin\n"), done.stderr


@pytest.mark.parametrize("module", [["flows", "methods"], ["tasks", "report"], ["tasks.registry.ui"]])
def test_a_current_folder_that_was_deleted_is_one_sentence(tmp_path: Path, module: list[str]) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    run = f"sys.argv = {module!r}; runpy.run_module({module[0]!r}, run_name='__main__')"
    code = f"import os, runpy, sys; os.rmdir(os.getcwd()); {run}"
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=gone, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "contrapposto: The current folder no longer exists; change to another one.\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_without_a_reader_the_command_ends_without_a_word(tmp_path: Path, lines: int) -> None:
    code = (
        "import sys; from tasks.common import command\n"
        f"def work():\n    print('x\\n' * {lines}); return 0\n"
        "sys.exit(command.run(work))"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == command.NO_READER


def test_a_broken_pipe_inside_the_program_is_a_fault(root: Path) -> None:
    def work() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        command.run(work, root)


def test_closed_standard_streams_are_no_error_and_no_file_gets_their_numbers(tmp_path: Path) -> None:
    code = (
        "import os, sys; from tasks.common import command\n"
        "def work():\n"
        "    with open('out', 'w') as file: number = file.fileno(); print('printed'); print('warned', file=sys.stderr)\n"
        "    open('number', 'w').write(str(number)); return 0\n"
        "sys.exit(command.run(work))"
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(closing, cwd=tmp_path, env=environment).returncode == 0
    assert (tmp_path / "out").read_text() == "" and int((tmp_path / "number").read_text()) > 2
