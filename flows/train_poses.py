"""The flows: each walks the DVC graph to other targets, so that a step is made the same way whoever asks for it.

`python -m flows train-poses` runs one without a standing server; `prefect.yaml` deploys them to a server that stands.
Their parameters are typed: Prefect refuses a run whose parameters do not fit before it is created.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.param_changes import Changes
from flows.runner import alone, train, walk
from flows.workspace import Held

PROMOTED = ("promote", "report")
Raw = Annotated[str, Field(min_length=1)]


@flow(name="train-poses")
def train_poses(raw: Raw | None = None, changes: Changes | None = None) -> State[Any]:
    """The whole chain, from pictures to promoted models and the report.

    `raw`: a folder of pictures, or "mannequin" for the built-in ones; by default what params.yaml says.
    `changes`: keys of params.yaml and their new values, such as {"poses": {"images": 200000}}; they are written into it.
    """
    return train(PROMOTED, raw, changes)


@flow(name="retrain")
def retrain(changes: Changes | None = None) -> State[Any]:
    """The whole chain on the pictures that are there now: what a schedule runs, and the arrival of data.

    Nothing is done when nothing has changed since the last training, or while another run works here.
    """
    state = train(PROMOTED, changes=changes, again=True)
    if state.is_failed() and isinstance(state.result(raise_on_failure=False), Held):
        return Completed(name="Skipped", message=state.message)
    return state


@flow(name="curate")
def curate(raw: Raw | None = None, changes: Changes | None = None) -> State[Any]:
    """From pictures to the dataset, its shards and its card; nothing is trained."""
    return walk(("dataset_card",), raw, changes)


@flow(name="generate")
def generate(changes: Changes | None = None) -> State[Any]:
    """New pictures by the champion, of which those are kept that show what was asked for; see tasks/sample/generate.py.

    `changes`: for example {"generate": {"category": "run", "count": 100}}.
    """
    return alone("generate", changes)


@flow(name="evaluate")
def evaluate(changes: Changes | None = None) -> State[Any]:
    """The copy test and the distances to held-out data, with whatever they need that is not up to date."""
    return walk(("memorization", "fidelity"), changes=changes)
