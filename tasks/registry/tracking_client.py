"""MLflow's client; a store that is away or on a full disk is a sentence instead of a trace."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from tasks.common.errors import UserError


class StoreAway(UserError):
    """MLflow's store does not answer or cannot be written. What was finished before is kept."""


class Client:
    """An `MlflowClient` whose methods raise StoreAway where the store is at fault."""

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces every table it makes
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # and traces what it raises anyhow
        self._uri = uri
        self._client = self._guarded(MlflowClient)(tracking_uri=uri)

    def __getattr__(self, name: str) -> Any:
        return self._guarded(getattr(self._client, name))

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import OperationalError

        @functools.wraps(call, updated=())
        def guarded(*arguments: Any, **named: Any) -> Any:
            try:
                return call(*arguments, **named)
            except (MlflowException, OperationalError) as error:
                reason = _trouble(str(error), getattr(error, "error_code", "TEMPORARILY_UNAVAILABLE"))
                if reason is None:
                    raise
                raise StoreAway(f"MLflow's store {self._uri} {reason}; run again when it is back.", code=1) from error

        return guarded


def _trouble(text: str, code: str) -> str | None:
    """What is the matter with the store, in words; None if it is not at fault."""
    if text.startswith("API request to "):  # the beginning of what MLflow says after its last attempt
        return "does not answer"
    if code == "TEMPORARILY_UNAVAILABLE":
        told = re.search(r"\(\S+Error\) (.+)", text)  # how SQLAlchemy cites the database
        return f"cannot be used ({told[1] if told else text.splitlines()[0]})"
    return None
