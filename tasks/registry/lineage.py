"""Lineage from people to models: which trainings have seen which rows of the dataset.

A training leaves `trained_on.json` beside its model and, before its first step, with its MLflow run: the shards by their
sha256 and the keys of all samples. So a training that was stopped half-way is known too.
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
from tasks.paths import MODELS
from tasks.registry import tracking

FILE = "trained_on.json"


@dataclass(frozen=True)
class Trained:
    """A model that some of the rows asked for have gone into: its name in words, how many of them it was trained on
    itself, and whether it began with the weights of such a model."""

    name: str
    rows: int
    begun_with: bool


@dataclass(frozen=True)
class _Training:
    """One training on record; `sha256` is that of its model if it was finished, `seen` its `trained_on.json` if it has one."""

    name: str
    sha256: str | None
    seen: dict[str, Any] | None


def trained_on(dataset: ShardDataset, start: str | None) -> dict[str, Any]:
    """What a training on this split sees, for `FILE`; `start` is the sha256 of the model whose weights it begins with."""
    return {"shards": dataset.digests(), "keys": sorted(dataset.keys), "start": start}


def trainings_on(params: Params, root: Path, keys: set[str]) -> tuple[list[Trained], int]:
    """The models that any of `keys` has gone into, and how many trainings on record do not say what they saw.

    Looks into `artifacts/` and, where there is an MLflow store, at every training and the model versions made of it.
    """
    digests = {paths.model_sha256(root, name): name for name in MODELS if (paths.model_folder(root, name)).is_dir()}
    trainings = list(_recorded(params, root, digests))
    recorded = {training.sha256 for training in trainings}
    for sha256, name in digests.items():
        if sha256 not in recorded:
            path = paths.model_folder(root, name) / FILE
            seen = files.read_json(path) if path.is_file() else None
            trainings.append(_Training(f"{name}, in artifacts/{name}, trained elsewhere", sha256, seen))
    rows = [len(keys.intersection(one.seen["keys"])) if one.seen else 0 for one in trainings]
    reached = {one.sha256 for one, n in zip(trainings, rows, strict=True) if n and one.sha256}
    begun = [False] * len(trainings)
    for _ in trainings:  # a chain of models, each begun with the one before, is at most so long
        begun = [one.seen is not None and one.seen["start"] in reached for one in trainings]
        reached |= {one.sha256 for one, after in zip(trainings, begun, strict=True) if after and one.sha256}
    found = [Trained(one.name, n, after) for one, n, after in zip(trainings, rows, begun, strict=True) if n or after]
    return found, sum(one.seen is None for one in trainings)


def _recorded(params: Params, root: Path, here: dict[str, str]) -> Iterator[_Training]:
    """Every training in the MLflow store; `here`: sha256 -> name of the models in artifacts/."""
    if not tracking.store_exists(params.tracking, root):
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
            if sha256 in here:
                names.append(f"in artifacts/{here[sha256]}")
            seen = None
            if any(artifact.path == FILE for artifact in client.list_artifacts(run_id)):
                seen = files.read_json(Path(client.download_artifacts(run_id, FILE, folder)))
            yield _Training(", ".join(names), sha256, seen)
