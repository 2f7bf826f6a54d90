"""Where the MLflow store is: its URI, checks of a database file before MLflow opens it, and workspaces that were moved.

All experiments of a workspace have its store.
"""

from __future__ import annotations

import importlib.util
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tasks.common import experiment
from tasks.common.errors import UserError
from tasks.config.params import Tracking

ARTIFACTS = "mlruns"  # folder of the workspace
HTTP = ("http://", "https://")
SQLITE = "sqlite:///"
PATIENCE = 20.0  # seconds for which another program may lock the database


def is_server(tracking: Tracking) -> bool:
    """Whether the store is an MLflow server that somebody else runs."""
    return tracking.store.startswith(HTTP)


def database(tracking: Tracking, root: Path) -> Path | None:
    """The SQLite file of the store, or None if the store is a server."""
    name = tracking.store.removeprefix(SQLITE)
    return None if "://" in name else (experiment.workspace(root) / name).resolve()


def uri(tracking: Tracking, root: Path) -> str:
    """The tracking URI. MLflow needs the absolute path of an SQLite file."""
    path = database(tracking, root)
    return tracking.store if path is None else f"{SQLITE}{path}"


def artifacts(root: Path) -> str:
    """The URI of the folder for artifacts, unless a server has its own."""
    return (experiment.workspace(root) / ARTIFACTS).resolve().as_uri()


def exists(tracking: Tracking, root: Path) -> bool:
    """Whether there is a store to ask. A URI is assumed to be right."""
    path = database(tracking, root)
    return path is None or path.is_file()


def experiment_id(path: Path, name: str) -> str | None:
    """The id of an experiment in an SQLite file, read without MLflow, which takes seconds to import. None if unknown."""
    if not path.is_file():
        return None
    try:
        with closing(_opened(path)) as connection:
            found = connection.execute("SELECT experiment_id FROM experiments WHERE name = ?", (name,)).fetchone()
    except sqlite3.DatabaseError:
        return None  # opening the store explains it
    return None if found is None else str(found[0])


def _opened(path: Path) -> sqlite3.Connection:
    """A connection to an SQLite file, which must exist.

    It may write, since the journal of a process that was killed has to be rolled back before anything can be read.
    """
    return sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)


def check(path: Path) -> None:
    """Raise UserError unless MLflow can open or create this SQLite file; MLflow itself would retry for minutes."""
    if "?" in str(path):  # it ends the file's name in a URI
        raise UserError(f"tracking.store: MLflow cannot open {path}, because its path has a question mark.")
    installed = importlib.util.find_spec("mlflow")
    if installed is not None and "%" in str(installed.origin):  # its migrations treat the path as a format
        raise UserError(
            f"MLflow cannot work where it is installed ({installed.origin}), because the path has a percent sign: "
            "move the project to another folder and run `make setup`."
        )
    if path.is_dir():
        raise UserError(f"tracking.store: {path} is a folder; give the name of an SQLite file such as mlflow.db.")
    if not path.parent.is_dir():
        raise UserError(f"tracking.store: the folder {path.parent} does not exist.")
    if not path.exists() or not path.stat().st_size:
        return  # MLflow creates the tables
    try:
        with closing(_opened(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return  # MLflow waits for the other process
        raise UserError(f"tracking.store: {path} cannot be read ({error}).") from error
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"tracking.store: {path} is damaged or no SQLite database ({error}); restore it from a backup, or move it away."
        ) from error
    if tables and "alembic_version" not in tables:
        raise UserError(f"tracking.store: {path} is a database of another program.")


def relocate(path: Path, experiment: str, location: str) -> None:
    """Make the records of a moved or copied workspace point to its present folder for artifacts.

    MLflow stores absolute URIs of artifacts. `path`: the SQLite file; `location`: the URI of the folder for artifacts. Raises
    UserError if the file is damaged, or locked by another program for PATIENCE seconds.
    """
    try:
        _relocate(path, experiment, location)
    except sqlite3.OperationalError as error:
        raise UserError(f"tracking.store: {path} cannot be used ({error}); run again later.", code=1) from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"tracking.store: {path} is damaged ({error}); restore it from a backup.") from error


def _relocate(path: Path, experiment: str, location: str) -> None:
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if "experiments" not in tables:
            return
        found = connection.execute("SELECT artifact_location FROM experiments WHERE name = ?", (experiment,)).fetchone()
        if found is None or not found[0] or found[0] == location:
            return
        for table, column in (
            ("experiments", "artifact_location"),
            ("runs", "artifact_uri"),
            ("logged_models", "artifact_location"),
            ("model_versions", "source"),
            ("model_versions", "storage_location"),
        ):
            if table in tables:
                for old, new in ((found[0], location), (_path(found[0]), _path(location))):
                    connection.execute(
                        f"UPDATE {table} SET {column} = :new || substr({column}, :after) "
                        f"WHERE {column} = :old OR substr({column}, 1, :after) = :old || '/'",
                        {"new": new, "old": old, "after": len(old) + 1},
                    )
        connection.commit()


def _path(location: str) -> str:
    """A file URI as a path, as MLflow stores the location of its default experiment."""
    return url2pathname(urlsplit(location).path)


def schema_problem(found: str, path: Path | None) -> str:
    """What to do about a database with the schema version `found`, which is not the one of the installed MLflow."""
    import mlflow

    known = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    if any(known.glob(f"{found}_*.py")):
        where = "URI" if path is None else f"{SQLITE}{path}"
        return f"was written by an older MLflow; make a backup and run `mlflow db upgrade {where}`"
    return f"was written by a newer MLflow than the installed {mlflow.__version__}; install that version"
