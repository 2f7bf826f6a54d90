"""The adapter that `mlflow models serve` runs. MLflow executes this file ("models from code"), so nothing is pickled."""

from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel

from tasks.foreign.serving import Body, Painter


class AdaptedModel(PythonModel):
    """Answers each of a list of requests with a list of pictures."""

    def load_context(self, context: Any) -> None:
        """The published model and the adapter."""
        self.painter = Painter(Path(context.artifacts["base"]), Path(context.artifacts["adapter"]))

    def predict(self, model_input: list[Body]) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        """The requested pictures. Raises MlflowException, which the server sends with status 400, if a request is invalid."""
        try:
            return [self.painter.answer(body) for body in model_input]
        except ValueError as error:
            raise MlflowException(str(error), BAD_REQUEST) from error


set_model(AdaptedModel())
