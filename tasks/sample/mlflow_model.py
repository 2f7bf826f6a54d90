"""The model that `mlflow models serve` runs. MLflow executes this file ("models from code"), so nothing is pickled."""

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from tasks.registry.served_model import refusals
from tasks.sample.served_requests import Body, Studio


class Contrapposto(PythonModel):
    """Answers each of a list of requests with a list of samples."""

    def load_context(self, context: Any) -> None:
        """The exported models: of poses and pictures, of motion, of video, the upscaler, classifiers. Not all need be there."""
        self.studio = Studio({name: Path(folder) for name, folder in context.artifacts.items()})

    def predict(self, model_input: list[Body]) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        """The requested samples. An invalid request is refused with status 400 and the reason."""
        with refusals():
            return [self.studio.answer(body) for body in model_input]


set_model(Contrapposto())
