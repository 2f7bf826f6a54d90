"""MLflow's client. Failures of the store become one sentence instead of a traceback."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.common import files
from tasks.common.errors import UserError
from tasks.registry import store_location


class StoreAway(UserError):
    """MLflow's store does not answer or cannot be written. Finished work is kept."""


def create_database(path: Path) -> None:
    """Make MLflow's tables in a new SQLite file. MLflow itself, stopped half-way, leaves a file that it refuses for ever."""
    from mlflow.store.db import utils

    with files.new_file(path) as temporary:
        temporary.unlink(missing_ok=True)  # of an earlier attempt that was killed
        engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{temporary}")  # type: ignore[no-untyped-call]
        try:
            utils._initialize_tables(engine)  # type: ignore[no-untyped-call]
        finally:
            engine.dispose()


class Client:
    """An `MlflowClient` whose methods raise UserError if the store is at fault, StoreAway if that may be temporary.

    The model registry is in the same store, whatever the environment says. `database`: the SQLite file of the store, or None.
    """

    def __init__(self, uri: str, database: Path | None) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports every table that it creates
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints tracebacks of what it raises
        self._name = re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)  # without the password
        self._database = database
        if database is not None and not (database.exists() and database.stat().st_size):
            self._guarded(create_database)(database)
        self._client = self._guarded(MlflowClient)(tracking_uri=uri, registry_uri=uri)

    def __getattr__(self, name: str) -> Any:
        return self._guarded(getattr(self._client, name))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import DatabaseError

        @functools.wraps(call, updated=())
        def guarded(*arguments: Any, **named: Any) -> Any:
            try:
                return call(*arguments, **named)
            except (MlflowException, DatabaseError) as error:
                problem = self._problem(str(error), getattr(error, "error_code", ""))
                if problem is None:
                    raise
                raise problem from error

        return guarded

    def _problem(self, text: str, code: str) -> UserError | None:
        """The error for a message of MLflow; None if the store is not at fault."""
        if text.startswith("API request to "):  # how MLflow's message begins after its last attempt
            return StoreAway(f"MLflow's store {self._name} does not answer; run again when it is back.", code=1)
        schema = re.search(r"out-of-date database schema \(found version (\w+)", text)
        if schema:
            return UserError(f"MLflow's store {self._name} {store_location.schema_problem(schema[1], self._database)}.")
        cause = re.search(r"\(\S+Error\) (.+)", text)  # how SQLAlchemy cites the database
        if cause and re.search(r"malformed|not a database", cause[1]):
            return UserError(f"MLflow's store {self._name} is damaged ({cause[1]}); restore it from a backup.", code=3)
        operational = re.search(r"OperationalError\)", text)
        if code == "TEMPORARILY_UNAVAILABLE" or operational:
            reason = cause[1] if cause else text.splitlines()[0]
            return StoreAway(
                f"MLflow's store {self._name} cannot be used ({reason}); run again when it is back.", code=1
            )
        return None
