"""Lineage from people to models: which trainings used which rows of the dataset.

A training writes `trained_on.json`, with the sha256 of the shards and the keys of all samples, next to its model. It also logs
it with its MLflow run before the first step, so a training that was stopped half-way is known, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks import paths
from tasks.common import files
from tasks.config.params import Params
from tasks.dataset.shards import ShardDataset
from tasks.registry import store_location, tracking

FILE = "trained_on.json"


@dataclass(frozen=True)
class Trained:
    """A model that depends on some of the given rows.

    `name`: in words; `rows`: how many of the rows it was trained on; `warm_started`: whether it started from the weights of
    such a model.
    """

    name: str
    rows: int
    warm_started: bool


@dataclass(frozen=True)
class _Training:
    """One recorded training: the `sha256` of its model if it finished, and its `trained_on.json` if there is one."""

    name: str
    sha256: str | None
    trained_on: dict[str, Any] | None


def trained_on(dataset: ShardDataset, start: str | None) -> dict[str, Any]:
    """The content of `FILE` for a training on this split; `start` is the sha256 of the model whose weights it starts from."""
    return {"shards": dataset.digests(), "keys": sorted(dataset.keys), "start": start}


def trainings_on(params: Params, root: Path, keys: set[str]) -> tuple[list[Trained], int]:
    """The models that depend on any of `keys`, and the number of recorded trainings without a list of their rows.

    Looks into `artifacts/` and, if there is an MLflow store, at every training and its model versions.
    """
    here = {path.name: _sha256(path) for path in sorted((root / paths.ARTIFACTS).glob("*/")) if _is_trained(path)}
    trainings = list(_recorded(params, root, {sha256: name for name, sha256 in here.items() if sha256}))
    recorded = {training.sha256 for training in trainings}
    for name, sha256 in here.items():
        if sha256 is None or sha256 not in recorded:
            path = paths.model_folder(root, name) / FILE
            rows_file = files.read_json(path) if path.is_file() else None
            trainings.append(_Training(f"{name}, in artifacts/{name}", sha256, rows_file))
    rows = [len(keys.intersection(one.trained_on["keys"])) if one.trained_on else 0 for one in trainings]
    reached = {one.sha256 for one, n in zip(trainings, rows, strict=True) if n and one.sha256}
    started = [False] * len(trainings)
    for _ in trainings:  # the longest possible chain of models, each started from the one before
        started = [one.trained_on is not None and one.trained_on["start"] in reached for one in trainings]
        reached |= {one.sha256 for one, after in zip(trainings, started, strict=True) if after and one.sha256}
    models = [Trained(one.name, n, after) for one, n, after in zip(trainings, rows, started, strict=True) if n or after]
    return models, sum(one.trained_on is None for one in trainings)


def _is_trained(folder: Path) -> bool:
    return (folder / paths.MODEL_FILE).is_file() or (folder / FILE).is_file()


def _sha256(folder: Path) -> str | None:
    """The sha256 by which MLflow knows the model; None for an adapter, whose file has another name."""
    return paths.sha256(folder) if (folder / paths.MODEL_FILE).is_file() else None


def _recorded(params: Params, root: Path, artifacts: dict[str, str]) -> Iterator[_Training]:
    """Every training in the MLflow store; `artifacts`: sha256 -> name of the models in artifacts/."""
    if not store_location.exists(params.tracking, root):
        return
    store = tracking.Store(params.tracking, root)
    client = store.client
    aliases: dict[tuple[str, str], str] = {}
    for model in client.search_registered_models():
        aliases |= {(model.name, version): f" ({alias})" for alias, version in model.aliases.items()}
    with tempfile.TemporaryDirectory() as folder:
        for run in store.trainings():
            run_id, sha256 = run.info.run_id, run.data.tags.get("contrapposto.model_sha256")
            names = [run.data.tags["contrapposto.model"], f"MLflow run {run_id}"]
            for version in client.search_model_versions(f"run_id = '{run_id}'"):
                alias = aliases.get((version.name, version.version), "")
                names.append(f"version {version.version} of {version.name}{alias}")
            if sha256 in artifacts:
                names.append(f"in artifacts/{artifacts[sha256]}")
            rows_file = None
            if any(artifact.path == FILE for artifact in client.list_artifacts(run_id)):
                rows_file = files.read_json(Path(client.download_artifacts(run_id, FILE, folder)))
            yield _Training(", ".join(names), sha256, rows_file)
