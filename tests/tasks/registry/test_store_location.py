"""The MLflow store: settings that cannot work, databases that cannot be used, and workspaces that were moved."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from tasks.common.errors import UserError
from tasks.config.params import Tracking, load
from tasks.registry import model_registry, store_location, tracking_client
from tasks.registry.tracking import Store
from tests.support.workspaces import write_params

CREATE = tracking_client.create_database  # the tests get copies of an empty database instead
NAME_NOTHING = [
    "http://", "https:///mlflow", "http://:5000", "http://[::1", "http://host:port", "http://my host", "sqlite://",
    "sqlite:///", "sqlite:////", "sqlite:///folder/", "sqlite:///:memory:", "sqlite://runs.db", "postgresql://",
    "postgresql://host", "postgresql+psycopg2://me@host/", "mysql://host:0/mlflow", "file:", "mlflow.db://",
]  # fmt: skip


@pytest.mark.parametrize(
    "store", ["mlruns", "localhost:5000", "file:mlruns", "file:///tmp/mlruns", "databricks", "", *NAME_NOTHING]
)
def test_settings_that_mlflow_cannot_use_are_refused(tmp_path: Path, store: str) -> None:
    path = write_params(tmp_path, tracking__store=store)
    with pytest.raises(UserError, match=r"tracking\.store"):
        load(path)


@pytest.mark.parametrize(
    "store",
    [
        "mlflow.db",
        "state/runs.sqlite",
        "http://127.0.0.1:5000",
        "https://me:secret@host/mlflow",
        "http://[::1]:5000",
        "postgresql+psycopg2://me@host/mlflow",
        "postgresql:///mlflow?host=/var/run/postgresql",
        "sqlite:///x.db",
        "sqlite:////data/my runs/x.db",
    ],
)
def test_settings_that_mlflow_can_use_are_accepted(store: str) -> None:
    assert Tracking(store=store).store == store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a finished run, its artifact, and a registered model version."""
    root = tmp_path_factory.mktemp("made") / "workspace"
    root.mkdir()
    params = load(write_params(root))
    store = Store(params.tracking, root)
    run = store.start("run", {})
    (root / "note.txt").write_text("kept")
    run.artifact(root / "note.txt", "model")
    run.finish("FINISHED")
    client = store.client
    client.create_registered_model(model_registry.name("poses"))
    client.create_model_version(model_registry.name("poses"), f"runs:/{run.id}/model", run.id)
    return root


def dump(root: Path) -> str:
    """Everything in the database, as SQL."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return "\n".join(connection.iterdump())


def test_a_moved_workspace_finds_its_artifacts_and_writes_no_others(made: Path, tmp_path: Path) -> None:
    root = tmp_path / "moved"
    shutil.copytree(made, root)
    before = sorted(made.rglob("*"))
    params = load(root / "params.yaml")
    store = Store(params.tracking, root)
    (version,) = store.client.search_model_versions("name = 'contrapposto-poses'")
    fetched = store.client.download_artifacts(version.run_id, "model/note.txt", str(tmp_path))
    assert Path(fetched).read_text() == "kept"
    run = store.start("another", {})
    run.artifact(root / "note.txt")
    assert (root / "mlruns" / run.id / "artifacts/note.txt").is_file()
    assert sorted(made.rglob("*")) == before
    assert str(made) not in dump(root) and root.as_uri() in dump(root)


def test_a_shared_database_outside_the_workspace_is_left_alone(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    (tmp_path / "workspace").mkdir()
    Store(Tracking(store=str(tmp_path / "mlflow.db")), tmp_path / "workspace")
    assert made.as_uri() in dump(tmp_path) and tmp_path.as_uri() not in dump(tmp_path)


def test_a_damaged_database_is_one_sentence(made: Path, tmp_path: Path) -> None:
    write_params(tmp_path)
    content = (made / "mlflow.db").read_bytes()
    for damaged in (b"not a database" * 100, content[:5000], content[:4096] + bytes(len(content) - 4096)):
        (tmp_path / "mlflow.db").write_bytes(damaged)
        began = time.monotonic()
        with pytest.raises(UserError, match="damaged"):
            Store(Tracking(), tmp_path)
        assert time.monotonic() - began < 60  # MLflow itself retries for minutes


def test_a_write_that_was_killed_is_rolled_back(made: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed.db"
    with closing(sqlite3.connect(made / "mlflow.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # pages are written before the end of the transaction
        connection.execute("BEGIN")
        for i in range(1000):
            connection.execute(
                "INSERT INTO experiments (experiment_id, name) VALUES (?, ?)", (1000 + i, "x" * 200 + str(i))
            )
        shutil.copyfile(made / "mlflow.db", killed)  # as they lie there when the process is killed
        shutil.copyfile(made / "mlflow.db-journal", f"{killed}-journal")
        connection.execute("ROLLBACK")
    assert store_location.experiment_id(killed, "x" * 200 + "0") is None
    store_location.check(killed)
    assert store_location.experiment_id(killed, "Default") == "0"


def test_a_database_is_made_whole_or_not_at_all(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow cannot open a file in which only some of its tables were made."""
    path = tmp_path / "mlflow.db"
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", lambda engine: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            CREATE(path)
    assert list(tmp_path.iterdir()) == []
    path.with_name("mlflow.db.tmp").write_bytes(
        (made / "mlflow.db").read_bytes()[:8192]
    )  # of an attempt that was killed
    CREATE(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    Store(Tracking(), tmp_path).start("run", {}).finish("FINISHED")


def test_a_database_that_another_program_holds_is_one_sentence(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    monkeypatch.setattr(store_location, "PATIENCE", 0.1)
    with closing(sqlite3.connect(root / "mlflow.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"cannot be used .*locked"):
            Store(Tracking(), root)
    assert len(Store(Tracking(), root).client.search_registered_models()) == 1


def test_a_folder_and_another_programs_database_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        Store(Tracking(), tmp_path)
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    with pytest.raises(UserError, match="another program"):
        Store(Tracking(store="other.db"), tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Store(Tracking(store="nowhere/runs.db"), tmp_path)


@pytest.mark.parametrize(("version", "age"), [("df50e92ffc5e", "older MLflow"), ("ffffffffffff", "newer MLflow")])
def test_a_database_of_another_mlflow_is_one_sentence(made: Path, tmp_path: Path, version: str, age: str) -> None:
    shutil.copy(made / "mlflow.db", tmp_path / "mlflow.db")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
        connection.commit()
    with pytest.raises(UserError, match=age):
        Store(Tracking(), tmp_path)


def test_the_registry_is_in_the_store_whatever_the_environment_says(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(made, root)
    for name in ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store = Store(load(root / "params.yaml").tracking, root)
    assert len(store.client.search_registered_models()) == 1
    assert store_location.exists(Tracking(), root)


def test_a_path_with_a_percent_sign_works_and_one_with_a_question_mark_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "100% of Anna's $x #1"
    params = load(write_params(root))
    Store(params.tracking, root).start("run", {}).finish("FINISHED")
    assert (root / "mlflow.db").is_file()
    asked = tmp_path / "why?"
    write_params(asked)
    with pytest.raises(UserError, match="question mark"):
        Store(params.tracking, asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == [root.name, asked.name]


def test_an_environment_whose_path_has_a_percent_sign_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spec:
        origin = "/home/anna/100%/.venv/lib/python3.11/site-packages/mlflow/__init__.py"

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec)
    with pytest.raises(UserError, match="percent sign"):
        store_location.check(tmp_path / "mlflow.db")
