"""The model that `mlflow models serve` runs. MLflow executes this file ("models from code"), so nothing is pickled."""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel

from tasks.sample.served_requests import Body, Studio


class Contrapposto(PythonModel):
    """Answers each of a list of requests with a list of samples."""

    def load_context(self, context: Any) -> None:
        """The exported models: of poses and pictures, of motion, of video, the upscaler, classifiers. Not all need be there."""
        self.studio = Studio({name: Path(folder) for name, folder in context.artifacts.items()})

    def predict(self, model_input: list[Body]) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        """The requested samples. Raises MlflowException, which the server sends with status 400, if a request is invalid."""
        try:
            return [self.studio.answer(body) for body in model_input]
        except ValueError as error:
            raise MlflowException(str(error), BAD_REQUEST) from error


set_model(Contrapposto())
