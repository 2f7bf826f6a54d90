"""The flows: each walks the DVC graph to other targets, so that a step is made the same way whoever asks for it.

`python -m flows train-poses` runs one without a standing server; `prefect.yaml` deploys them to a server that stands.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.walk import walk


@flow(name="train-poses")
def train_poses(raw: str | None = None) -> State[Any]:
    """The whole chain, from pictures to promoted models and the report.

    `raw`: a folder of pictures, or "mannequin" for the built-in ones; by default what params.yaml says.
    """
    return walk(("promote", "report"), raw, record=True)


@flow(name="retrain")
def retrain() -> State[Any]:
    """The whole chain on the pictures that params.yaml names: what a schedule runs when pictures have been added."""
    return walk(("promote", "report"), record=True)


@flow(name="curate")
def curate(raw: str | None = None) -> State[Any]:
    """From pictures to the dataset and its shards; nothing is trained."""
    return walk(("shard",), raw)


@flow(name="generate")
def generate() -> State[Any]:
    """New poses and pictures, with whatever they need that is not up to date."""
    return walk(("sample_pictures",))


@flow(name="evaluate")
def evaluate() -> State[Any]:
    """The copy test and the distances to held-out data, with whatever they need that is not up to date."""
    return walk(("memorization", "fidelity"))
