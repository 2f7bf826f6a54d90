"""Atomic writes: a kill at any moment leaves the old content or the new."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.common import files, tables
from tasks.common.errors import DataError
from tests.support.project import PROJECT

# Replaces the folder and dies before the n-th change of the file system that follows the writing.
CHILD = """
import os, signal, sys
from pathlib import Path
from tasks.common import files

folder, left = Path(sys.argv[1]), int(sys.argv[2])
armed = False

def count(event, arguments):
    global left
    if armed and event in ("os.rename", "shutil.rmtree", "os.remove", "os.rmdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
with files.new_folder(folder) as new:
    for name in "ab":
        (new / name).write_text("new")
    armed = True
"""


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


OLD, NEW = {"a": "old", "b": "old"}, {"a": "new", "b": "new"}


def _fill(folder: Path, text: str) -> None:
    with files.new_folder(folder) as new:
        for name in "ab":
            (new / name).write_text(text)


def _killed(folder: Path, step: int) -> bool:
    command = [sys.executable, "-c", CHILD, str(folder), str(step)]
    code = subprocess.run(command, cwd=PROJECT, timeout=60).returncode
    assert code in (0, -signal.SIGKILL)
    return code != 0


def test_a_folder_survives_a_kill_between_any_two_steps(tmp_path: Path) -> None:
    kills = 0
    for step in range(1, 20):
        folder = tmp_path / str(step) / "folder"
        _fill(folder, "old")
        killed = _killed(folder, step)
        if folder.exists():
            assert _content(folder) in (OLD, NEW)
        with pytest.raises(RuntimeError, match="unrelated"), files.new_folder(folder):
            raise RuntimeError("unrelated")
        assert _content(folder) in (OLD, NEW)  # recovered, although the second attempt failed too
        _fill(folder, "new")
        assert _content(folder) == NEW
        assert [path.name for path in folder.parent.iterdir()] == ["folder"]  # nothing else is left behind
        kills += killed
        if not killed:
            break
    assert kills >= 3


def test_an_error_while_filling_keeps_the_old_folder(tmp_path: Path) -> None:
    _fill(tmp_path / "folder", "old")
    with pytest.raises(KeyboardInterrupt), files.new_folder(tmp_path / "folder") as new:
        (new / "a").write_text("half")
        raise KeyboardInterrupt
    assert _content(tmp_path / "folder") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("durable", [False, True])
def test_an_error_while_writing_keeps_the_old_file(durable: bool, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.new_file(path, durable) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert [(other.name, other.read_bytes()) for other in path.parent.iterdir()] == [("file", b"old")]
    with files.new_file(path, durable) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert [(other.name, other.read_bytes()) for other in path.parent.iterdir()] == [("file", b"new")]


def test_json_is_the_same_bytes_for_the_same_value(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"b": 1, "a": "é"})
    files.write_json(tmp_path / "b", {"a": "é", "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert files.read_json(tmp_path / "a") == {"a": "é", "b": 1}
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a", float("nan"))
    assert files.read_json(tmp_path / "a") == {"a": "é", "b": 1}


def test_a_folder_that_is_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    """Somebody moved an output to a larger disk. It can be replaced again and again."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large/a").write_text("old")
    (tmp_path / "folder").symlink_to(tmp_path / "large")
    for _ in range(3):
        _fill(tmp_path / "folder", "new")
    assert _content(tmp_path / "folder") == NEW and _content(tmp_path / "large") == {"a": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "large"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", bytes(64)])
def test_a_damaged_file_of_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seen.json"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile, match=r"seen\.json is damaged") as caught:
        files.read_json(path)
    assert caught.value.code == 3 and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY\x01", bytes(64)])
def test_a_damaged_file_of_arrays_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "read.npz"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile, match=r"read\.npz is damaged"), files.reading(path):
        np.load(path, allow_pickle=False)


@pytest.mark.parametrize("content", [None, b"", b"PAR1" + bytes(40), "other columns"])
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | str | None) -> None:
    path, schema = tmp_path / "persons.parquet", pa.schema([("key", pa.string())])
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(pa.table({"name": ["a"]}), path)
    with pytest.raises(DataError, match=r"persons\.parquet (does not exist|is damaged|was written)"):
        tables.read(path, schema, "curate")
