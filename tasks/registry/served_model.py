"""The models as one MLflow model, for `mlflow models serve`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path


def save(
    folder: Path, models: Mapping[str, Path], requirements: list[str], code: str = "sample/mlflow_model.py"
) -> None:
    """Save the models (name -> folder) as one MLflow model that answers requests: code, weights and no pickle.

    `code`: the file in `tasks` that MLflow executes.
    """
    from mlflow import pyfunc

    tasks = Path(__file__).parents[1]
    with warnings.catch_warnings():
        # Requests are checked by our own model (`Body`), whose values may be anything.
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        pyfunc.save_model(
            folder,
            python_model=str(tasks / code),
            artifacts={name: str(path) for name, path in models.items()},
            code_paths=[str(tasks), str(tasks.parent / "diffusion_core")],
            pip_requirements=requirements,
        )
