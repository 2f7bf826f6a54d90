"""The models as one MLflow model, for `mlflow models serve`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the ValueError of an invalid request into the error that MLflow's server sends with status 400 and this reason."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    try:
        yield
    except ValueError as error:
        raise MlflowException(str(error), BAD_REQUEST) from error


def save(
    folder: Path, models: Mapping[str, Path], requirements: list[str], code: str = "sample/mlflow_model.py"
) -> None:
    """Save the models (name -> folder) as one MLflow model that answers requests: code, weights and no pickle.

    `code`: the file in `tasks` that MLflow executes.
    """
    from mlflow import pyfunc

    tasks = Path(__file__).parents[1]
    with warnings.catch_warnings():
        # `Body` checks the requests, so MLflow need not know the types of their values.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        pyfunc.save_model(
            folder,
            python_model=str(tasks / code),
            artifacts={name: str(path) for name, path in models.items()},
            code_paths=[str(tasks), str(tasks.parent / "diffusion_core")],
            pip_requirements=requirements,
        )
