"""The adapter that `mlflow models serve` runs. MLflow executes this file ("models from code"), so nothing is pickled."""

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from tasks.foreign.serving import Body, Painter
from tasks.registry.served_model import refusals


class AdaptedModel(PythonModel):
    """Answers each of a list of requests with a list of pictures."""

    def load_context(self, context: Any) -> None:
        """The published model and the adapter."""
        self.painter = Painter(Path(context.artifacts["base"]), Path(context.artifacts["adapter"]))

    def predict(self, model_input: list[Body]) -> list[list[dict[str, Any]]]:  # type: ignore[override]
        """The requested pictures. An invalid request is refused with status 400 and the reason."""
        with refusals():
            return [self.painter.answer(body) for body in model_input]


set_model(AdaptedModel())
