"""`contrapposto clean` removes what runs made, and nothing that a person put there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows import cleaning, services
from flows import workspace as workspaces
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import set_value
from tests.support.workspaces import small_project

# What people put into the folders of the project: the documented place of deliveries, and the unexpected ones.
THEIRS = (
    "data/raw/2026-11/run/a.jpg", "data/raw/labels.csv", "data/raw/shoot.dvc", "data/notes.txt", "data/poses/README",
    "artifacts/best/model.safetensors", "samples/chosen/a.png", "reports/mine.html", "exports/for-anna/x.zip",
    "mlflow.db.backup", "photos/a.jpg", "models/other.task",
)  # fmt: skip
MADE = (
    "data/raw/mannequin/run/a.png", "data/poses/mannequin/poses.parquet", "data/poses/gone/poses.parquet", "data/dataset/i",
    "data/shards/index.json", "data/shards.tmp/half", "data/poses/studio/poses.parquet", "artifacts/poses/m", "samples/poses/s",
    "reports/report.html", "reports/memorization/m.json", "reports/compare/compare.md",
    "reports/recognised.json", "exports/champion/mlflow/x",
    "data/listings/mannequin.json", "data/listings/listed.txt",
    "generated/g", "mlflow.db", "mlflow.db-wal", "mlruns/0/x", ".contrapposto/prefect/prefect.db",
)  # fmt: skip


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A copy of the project after a run, with deliveries and other files of its user."""
    root = small_project(tmp_path / "project")
    (root / "models").unlink()  # a link to the project's own
    for name in (*THEIRS, *MADE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    set_value(root / "params.yaml", "raw.parts", {"mannequin": "data/raw/mannequin", "studio": "photos"})
    lock = "schema: '2.0'\nstages:\n  extract@gone:\n    cmd: x\n    outs:\n    - path: data/poses/gone\n      md5: 0.dir\n"
    (root / "dvc.lock").write_text(lock + "    - path: /etc/hosts\n    - path: ../outside\n    - path: .\n")
    (tmp_path / "outside").touch()
    return root


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and ".git/" not in str(path)}


def test_everything_made_is_removed_and_everything_else_stays(used: Path) -> None:
    before = _files(used)
    assert set(THEIRS) | set(MADE) <= before
    cleaning.clean(used)
    assert before - _files(used) == set(MADE)
    assert not (used / "generated").exists() and not (used / "data/shards.tmp").exists()
    assert (used.parent / "outside").exists()


def test_a_dry_run_lists_the_same_and_removes_nothing(used: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _files(used)
    command = [sys.executable, "-m", "flows", "clean", "--dry-run"]
    listed = subprocess.run(command, cwd=used, capture_output=True, text=True, check=True).stdout
    left = {name for name in _files(used) if "__pycache__" not in name}
    assert left - {".contrapposto/pipeline.lock"} == before
    cleaning.clean(used)
    removed = capsys.readouterr().out
    assert listed.replace("would remove", "removed") == removed and "data/shards.tmp" in removed


def test_links_are_removed_and_not_followed(used: Path) -> None:
    kept = used.parent / "elsewhere"
    kept.mkdir()
    (kept / "a").touch()
    (used / "data/dataset/i").unlink()
    (used / "data/dataset").rmdir()
    (used / "data/dataset").symlink_to(kept)
    cleaning.clean(used)
    assert not (used / "data/dataset").is_symlink() and (kept / "a").exists()


def test_it_works_with_invalid_parameters(used: Path) -> None:
    (used / "params.yaml").write_text("nonsense: 1")
    cleaning.clean(used)
    assert not (used / "data/poses/gone").exists() and not (used / "data/shards").exists()


@pytest.mark.parametrize(
    "content", [b"- a\n", b"text", b"stages: \xff\n", b"<<<<<<< HEAD\nstages: {}\n=======\n", b"stages: 3"]
)
def test_a_damaged_lock_file_is_one_sentence_and_nothing_is_removed(used: Path, content: bytes) -> None:
    (used / "dvc.lock").write_bytes(content)
    before = _files(used)
    with pytest.raises(UserError, match=r"dvc\.lock is not a file of DVC's"):
        cleaning.clean(used)
    assert before <= _files(used)


def test_nothing_is_removed_while_something_is_at_work(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _files(used)
    with workspaces.alone(used), pytest.raises(workspaces.Held):
        cleaning.clean(used)
    monkeypatch.setattr(services, "running", lambda root: ["prefect"])
    with pytest.raises(UserError, match="prefect"):
        cleaning.clean(used)
    assert before <= _files(used)
    assert (used / paths.STATE).exists()
