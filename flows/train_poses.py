"""The flows: each walks the DVC graph to its own targets, so that a stage runs the same way in all of them.

`contrapposto train-poses` runs one without a standing server; `prefect.yaml` deploys them to a standing one. Their parameters
are typed: Prefect refuses parameters that do not fit before the run is created.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field

from flows.param_changes import Changes
from flows.runner import run_task, train, walk
from flows.workspace import Held
from tasks.paths import MOTION, VIDEO

PROMOTED = ("promote", "report")
Raw = Annotated[str, Field(min_length=1)]


@flow(name="train-poses")
def train_poses(raw: Raw | None = None, changes: Changes | None = None) -> State[Any]:
    """The whole chain, from pictures to promoted models and the report.

    `raw`: a folder of pictures, or "mannequin" for the built-in ones; None: the folders in params.yaml.
    `changes`: keys of params.yaml and their new values, such as {"poses": {"images": 200000}}; they are written into it.
    """
    return train(PROMOTED, raw, changes)


@flow(name="train-motion")
def train_motion(raw: Raw | None = None, changes: Changes | None = None) -> State[Any]:
    """From pictures, videos and motion captures to a model of motion and the page about it; switches its stages on.

    `raw` and `changes` as in `train_poses`.
    """
    targets = tuple(f"{stage}@{MOTION}" for stage in ("clips_card", "promote_motion", "motion_page"))
    return walk(targets, raw, Changes.model_validate(_given(changes, MOTION)))


@flow(name="train-video")
def train_video(raw: Raw | None = None, changes: Changes | None = None) -> State[Any]:
    """From pictures, videos and generated motion to a model of clips and the page about it; switches its stages on.

    `raw` and `changes` as in `train_poses`. It trains the models of pictures and of motion first, if they are not there.
    """
    targets = (f"promote_video@{VIDEO}", f"video_page@{VIDEO}", f"motion_page@{MOTION}")
    return walk(targets, raw, Changes.model_validate(_given(changes, MOTION, VIDEO)))


def _given(changes: Changes | None, *sections: str) -> dict[str, Any]:
    """The changes as nested values, with the stages of these sections switched on."""
    given: dict[str, Any] = changes.model_dump(exclude_unset=True) if changes is not None else {}
    return given | {section: {**given.get(section, {}), "run": [section]} for section in sections}


@flow(name="retrain")
def retrain(changes: Changes | None = None) -> State[Any]:
    """The whole chain on the pictures that are there now; a schedule runs it, and so does the arrival of data.

    It does nothing if nothing has changed since the last training, or while another run holds the workspace.
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
    """New pictures by the champion; those that show the requested pose are kept, see tasks/sample/generate.py.

    `changes`: for example {"generate": {"category": "run", "count": 100}}.
    """
    return run_task("generate", changes)


@flow(name="evaluate")
def evaluate(changes: Changes | None = None) -> State[Any]:
    """The memorization test and the distances to held-out data, after the stages that they need."""
    return walk(("memorization", "fidelity"), changes=changes)
