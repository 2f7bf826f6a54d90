"""MLflow: the record of every run.

One MLflow run per pipeline run, with one nested run per model that was trained. A model's run carries the digest of what the
model is trained from, so that an interrupted training finds its run again instead of opening a second one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tasks import paths
from tasks.common import git, process
from tasks.common.errors import UserError
from tasks.common.experiment import workspace
from tasks.config.params import Tracking
from tasks.registry import store_location
from tasks.registry.tracking_client import Client

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # 2 server processes instead of 10

PIPELINE = "CONTRAPPOSTO_PIPELINE_RUN"  # environment variable of a stage: the MLflow id of the pipeline run
SOURCE = "contrapposto"  # the Source column of MLflow's page
DIGEST = 16  # hexadecimal digits of a dataset's digest; MLflow takes up to 36 characters
BATCH = 1000  # metrics in one request, MLflow's limit


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)


class Run:
    """One MLflow run that this process owns. Its status is set by `finish`, never left to an exit handler."""

    def __init__(self, store: Store, run_id: str) -> None:
        self.store, self.id = store, run_id

    def last_step(self, metric: str) -> int:
        """The last step logged under a metric, -1 if there is none."""
        history = self.store.client.get_metric_history(self.id, metric)
        return max((point.step for point in history), default=-1)

    def log(self, points: Iterable[tuple[str, float, int]]) -> None:
        """Log (metric, value, step) points in batches."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_name(name), value, now, step) for name, value, step in points]
        for start in range(0, len(metrics), BATCH):
            self.store.client.log_batch(self.id, metrics=metrics[start : start + BATCH])

    def tag(self, **tags: str) -> None:
        """Set tags."""
        for key, value in tags.items():
            self.store.client.set_tag(self.id, key, value)

    def params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, nested mappings by dotted names; those already logged are left as they are."""
        from mlflow.entities import Param

        known = self.store.client.get_run(self.id).data.params
        fresh = [Param(_name(key), value) for key, value in _flat(params) if _name(key) not in known]
        if fresh:
            self.store.client.log_batch(self.id, params=fresh)

    def dataset(self, root: Path, parts: Iterable[str]) -> None:
        """Log the shards in data/shards as the dataset of this run: the names of its parts, its digest, and its sizes.

        A run that ended before there were shards has none.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        index = root / paths.SHARDS / paths.SHARD_INDEX
        if not index.is_file():
            return
        content = index.read_bytes()
        sizes = {split: entry["samples"] for split, entry in json.loads(content)["splits"].items()}
        dataset = Dataset(
            name=", ".join(sorted(parts)),
            digest=hashlib.sha256(content).hexdigest()[:DIGEST],
            source_type="local",
            source=json.dumps({"uri": paths.SHARDS.as_posix()}),
            profile=json.dumps(sizes),
        )
        tag = InputTag("mlflow.data.context", "training")
        self.store.client.log_inputs(self.id, datasets=[DatasetInput(dataset, [tag])])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run."""
        self.store.client.log_artifact(self.id, str(path), folder)

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.store.client.set_terminated(self.id, status)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the lock under which the processes of a workspace and of its experiments open the store."""
    state = workspace(root) / paths.STATE
    state.mkdir(parents=True, exist_ok=True)
    with open(state / "mlflow.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Store:
    """The experiment of this project in an MLflow store. It is created on first use.

    Raises UserError if the store cannot be used as `tracking` says, StoreAway if it does not answer.
    """

    def __init__(self, tracking: Tracking, root: Path) -> None:
        self.root = root
        # A server has a place for artifacts of its own.
        location = None if store_location.is_server(tracking) else store_location.artifacts(root)
        path = store_location.database(tracking, root)
        if path is not None:
            store_location.check(path)
            if (
                path.is_file() and location is not None and path.is_relative_to(root.resolve())
            ):  # not that of an experiment
                store_location.relocate(path, tracking.experiment, location)
        with _alone(root):  # two processes that create the tables at once would spoil them
            self.client: Any = Client(store_location.uri(tracking, root), path)
            experiment = self.client.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                self.experiment = self.client.create_experiment(tracking.experiment, artifact_location=location)
            elif experiment.lifecycle_stage != "active":
                raise UserError(
                    f"The MLflow experiment {tracking.experiment!r} was deleted; restore it or name another."
                )
            else:
                self.experiment = experiment.experiment_id

    def sweep(self) -> None:
        """End the runs whose process was killed (kill -9); they would stay RUNNING for ever."""
        for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'"):
            owner = run.data.tags.get("contrapposto.owner", "")
            if re.fullmatch(r"\d+:[\d.]+", owner) and not _alive(owner):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def start(self, name: str, tags: Mapping[str, str]) -> Run:
        """A new run owned by this process."""
        commit = git.commit(self.root)
        source = {"mlflow.source.name": SOURCE, "mlflow.source.type": "LOCAL"}
        all_tags = {"mlflow.runName": name, "contrapposto.owner": _owner(), **source, **tags}
        if commit:
            all_tags["mlflow.source.git.commit"] = commit
        return Run(self, self.client.create_run(self.experiment, tags=all_tags).info.run_id)

    def model_run(self, model: str, digest: str, what: str = "") -> Run:
        """The run of one training: the one that already carries this digest (an interrupted training), or a new one.

        A run of another process that is alive is not continued: two experiments may train the same model at once.
        `what`: the network, its size and the length of the training, for the run's name.
        """
        same = f"tags.`contrapposto.model` = '{model}' and tags.`contrapposto.digest` = '{digest}'"
        tags = {"contrapposto.kind": "model", "contrapposto.model": model, "contrapposto.digest": digest}
        parents = {"mlflow.parentRunId": PIPELINE, "prefect.flow_run_id": "PREFECT__FLOW_RUN_ID"}
        tags |= {tag: os.environ[variable] for tag, variable in parents.items() if variable in os.environ}
        tags["mlflow.source.name"] = f"{SOURCE} stage train {model}"
        for run in self.client.search_runs([self.experiment], same, order_by=["attributes.start_time DESC"]):
            owner = run.data.tags.get("contrapposto.owner", "")
            elsewhere = run.info.status == "RUNNING" and owner != _owner() and _alive(owner)
            if run.info.status != "FINISHED" and not elsewhere:
                self.client.update_run(run.info.run_id, status="RUNNING")
                resumed = Run(self, run.info.run_id)
                resumed.tag(**tags, **{"contrapposto.owner": _owner()})
                return resumed
        return self.start(" ".join(filter(None, (model, what, time.strftime("%Y-%m-%d %H:%M")))), tags)

    def trainings(self) -> list[Any]:
        """The MLflow runs of all trainings with any status, the latest first."""
        order = ["attributes.start_time DESC"]
        runs = self.client.search_runs([self.experiment], "tags.`contrapposto.kind` = 'model'", order_by=order)
        trainings = list(runs)
        while runs.token:
            runs = self.client.search_runs(
                [self.experiment], "tags.`contrapposto.kind` = 'model'", order_by=order, page_token=runs.token
            )
            trainings += runs
        return trainings

    def register(self, model: str, folder: Path, sha256: str, card: str) -> str:
        """Register the model in `folder` as a version of `contrapposto-<model>` with the alias challenger; returns its number.

        The version belongs to the MLflow run that trained the model, which is found by the file's sha256. A model that was
        trained elsewhere (and came by `dvc pull`) gets a run of its own. The same file is registered once.
        """
        name = f"contrapposto-{model}"
        trained = self.client.search_runs([self.experiment], f"tags.`contrapposto.model_sha256` = '{sha256}'")
        if trained:
            run_id = trained[0].info.run_id
        else:
            run = self.start(f"{model} (trained elsewhere)", {"contrapposto.model_sha256": sha256})
            for path in sorted(folder.iterdir()):
                run.artifact(path, "model")
            run.finish("FINISHED")
            run_id = run.id
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        known = [v for v in self.client.search_model_versions(f"name = '{name}'") if v.tags.get("sha256") == sha256]
        version = known[0] if known else self.client.create_model_version(name, f"runs:/{run_id}/model", run_id)
        tags = {"sha256": sha256} | ({"judged_in": os.environ[PIPELINE]} if PIPELINE in os.environ else {})
        for key, value in tags.items():
            self.client.set_model_version_tag(name, version.version, key, value)
        self.client.update_model_version(name, version.version, card)
        self.client.set_registered_model_alias(name, "challenger", version.version)
        return str(version.version)


def in_words(net: str, weights: int, images: int) -> str:
    """A network, its size and the length of its training for the name of a run, such as `unet 0.8M 120k images`."""
    net = "transformer" if net == "pose" else net
    length = f"{images / 1e6:.3g}M" if images >= 1e6 else f"{images / 1e3:.3g}k"
    return f"{net} {weights / 1e6:.1f}M {length} images"


def _name(name: str) -> str:
    """A name with the characters MLflow allows."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _owner() -> str:
    return process.identity(psutil.Process())


def _alive(owner: str) -> bool:
    return process.find(owner) is not None
