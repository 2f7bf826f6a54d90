"""MLflow: the record of every run. The only module that imports mlflow.

One MLflow run per pipeline run, and nested in it one per model that was trained. A model's run carries the digest of
what it is trained from, so that an interrupted training finds its own run again instead of opening a second one.
`python -m tasks.registry.tracking ui` opens the store in a browser.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from tasks import paths
from tasks.common import git, process
from tasks.common.errors import UserError
from tasks.config.params import Params, Tracking, load
from tasks.registry.tracking_client import Client

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # 2 server processes instead of 10

PIPELINE = "CONTRAPPOSTO_PIPELINE_RUN"  # environment variable: the MLflow run id of the pipeline run around a stage
BATCH = 1000  # metrics in one request, MLflow's limit


def store_uri(tracking: Tracking, root: Path) -> str:
    """The tracking URI: a full URI as it is, a file name as sqlite with an absolute path (MLflow refuses others)."""
    if "://" in tracking.store:
        return tracking.store
    return f"sqlite:///{(root / tracking.store).resolve()}"


def store_exists(tracking: Tracking, root: Path) -> bool:
    """Whether there is a store to ask: a server is taken at its word, a file must be there."""
    return "://" in tracking.store or (root / tracking.store).is_file()


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

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run."""
        self.store.client.log_artifact(self.id, str(path), folder)

    def finish(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self.store.client.set_terminated(self.id, status)


class Store:
    """The experiment of this project in an MLflow store, made on first use."""

    def __init__(self, tracking: Tracking, root: Path) -> None:
        self.root = root
        self.client: Any = Client(store_uri(tracking, root))
        experiment = self.client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            local = not tracking.store.startswith(("http://", "https://"))  # a server knows its own place
            location = (root / "mlruns").resolve().as_uri() if local else None
            self.experiment = self.client.create_experiment(tracking.experiment, artifact_location=location)
        elif experiment.lifecycle_stage != "active":
            raise UserError(f"The MLflow experiment {tracking.experiment!r} was deleted; restore it or name another.")
        else:
            self.experiment = experiment.experiment_id

    def sweep(self) -> None:
        """End the runs whose owner died without a word (kill -9): they would stay RUNNING for ever."""
        for run in self.client.search_runs([self.experiment], "attributes.status = 'RUNNING'"):
            owner = run.data.tags.get("contrapposto.owner", "")
            if re.fullmatch(r"\d+:[\d.]+", owner) and not _alive(owner):
                self.client.set_terminated(run.info.run_id, "KILLED")

    def start(self, name: str, tags: Mapping[str, str]) -> Run:
        """A new run owned by this process."""
        commit = git.commit(self.root)
        all_tags = {"mlflow.runName": name, "contrapposto.owner": _owner(), **tags}
        if commit:
            all_tags["mlflow.source.git.commit"] = commit
        return Run(self, self.client.create_run(self.experiment, tags=all_tags).info.run_id)

    def model_run(self, model: str, digest: str, what: str = "") -> Run:
        """The run of one training: the one that already carries this digest (an interrupted training), or a new one.

        `what` the run's name says between the model and the minute: the network, its size, the length of the training.
        """
        mine = f"tags.`contrapposto.model` = '{model}' and tags.`contrapposto.digest` = '{digest}'"
        tags = {"contrapposto.kind": "model", "contrapposto.model": model, "contrapposto.digest": digest}
        around = {"mlflow.parentRunId": PIPELINE, "prefect.flow_run_id": "PREFECT__FLOW_RUN_ID"}
        tags |= {tag: os.environ[variable] for tag, variable in around.items() if variable in os.environ}
        for run in self.client.search_runs([self.experiment], mine, order_by=["attributes.start_time DESC"]):
            if run.info.status != "FINISHED":
                self.client.update_run(run.info.run_id, status="RUNNING")
                resumed = Run(self, run.info.run_id)
                resumed.tag(**tags, **{"contrapposto.owner": _owner()})
                return resumed
        return self.start(" ".join(filter(None, (model, what, time.strftime("%Y-%m-%d %H:%M")))), tags)

    def trainings(self) -> list[Any]:
        """The MLflow runs of all trainings, the latest first, whatever became of them."""
        order = ["attributes.start_time DESC"]
        runs = self.client.search_runs([self.experiment], "tags.`contrapposto.kind` = 'model'", order_by=order)
        found = list(runs)
        while runs.token:
            runs = self.client.search_runs(
                [self.experiment], "tags.`contrapposto.kind` = 'model'", order_by=order, page_token=runs.token
            )
            found += runs
        return found

    def register(self, model: str, folder: Path, sha256: str, card: str) -> str:
        """Register the trained model in `folder` as a version of `contrapposto-<model>`, the challenger; returns its number.

        The version belongs to the MLflow run that trained it, known by the file's sha256; a model that was trained
        elsewhere (and came by `dvc pull`) gets a run of its own. The same file is registered once.
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
    """A network, its size and the length of its training, as the names of runs have them: `unet 0.8M 120k images`."""
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


def start_pipeline(params: Params, root: Path, flow_run_id: str | None) -> str:
    """Open the MLflow run of a pipeline run, with all parameters; returns its id."""
    store = Store(params.tracking, root)
    store.sweep()
    tags = {"contrapposto.kind": "pipeline"}
    if flow_run_id:
        tags["prefect.flow_run_id"] = flow_run_id
    for model, net in (("poses", params.poses), ("pictures", params.pictures)):
        tags[f"contrapposto.net.{model}"] = f"{net.net_name} {net.shape.width} x {net.shape.depth}"
    run = store.start(f"pipeline {', '.join(sorted(params.raw.parts))} {time.strftime('%Y-%m-%d %H:%M:%S')}", tags)
    run.params(params.model_dump())
    return run.id


def finish_pipeline(params: Params, root: Path, run_id: str, status: str, stages: Mapping[str, str]) -> None:
    """Close the pipeline's run with its lineage, metrics and report.

    `status`: FINISHED, FAILED or KILLED. `stages`: stage -> what became of it. The metrics and the report are logged
    only when the run FINISHED: those of an earlier run may still lie in the workspace.
    """
    run = Run(Store(params.tracking, root), run_id)
    run.tag(**{f"stage.{stage.replace('@', '/')}": state for stage, state in stages.items()})  # MLflow takes no @
    lock = root / "dvc.lock"
    if lock.is_file():
        # dvc.lock keeps what it knew of parts that have gone
        run.tag(**{out: md5 for out, md5 in lock_hashes(lock).items() if (root / out.removeprefix("dvc.")).exists()})
        run.artifact(lock)
    if status == "FINISHED":
        summary = json.loads((root / paths.SUMMARY / "summary.json").read_bytes())
        run.log([(name, value, 0) for name, value in summary["metrics"].items()])
        for page in sorted((root / paths.REPORTS).glob("*.html")):  # the report, and the card of the dataset
            run.artifact(page)
        run.tag(**_findings(root))
        for picture in sorted(
            [*(root / paths.REPORTS).glob("*/*.png"), *(root / paths.SAMPLES).glob(f"*/{paths.GRID}")]
        ):
            run.artifact(picture, f"pictures/{picture.parent.name}")
    run.finish(status)


def _findings(root: Path) -> dict[str, str]:
    """What a reader of the list of runs asks first: which data, the verdicts, and whether the models were promoted."""
    tags = {}
    index, memorization = root / paths.SHARDS / paths.SHARD_INDEX, root / paths.MEMORIZATION / "memorization.json"
    if index.is_file():
        tags["contrapposto.dataset_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    if memorization.is_file():
        verdicts = json.loads(memorization.read_bytes())["verdicts"]
        tags |= {f"contrapposto.verdict.{what}": verdict for what, verdict in verdicts.items()}
    promoted = root / paths.PROMOTE / "promote.json"
    if promoted.is_file():
        decision = json.loads(promoted.read_bytes())
        tags["contrapposto.promoted"] = "yes" if decision["promote"] else "no: " + " ".join(decision["reasons"])
    return tags


def lock_hashes(lock: Path) -> dict[str, str]:
    """`dvc.<path>` -> hash of every output in a dvc.lock."""
    from ruamel.yaml import YAML

    stages = YAML(typ="safe", pure=True).load(lock.read_text())["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {f"dvc.{out['path']}": out["md5"] for out in outs if "md5" in out}


def save_served(folder: Path, models: Mapping[str, Path], requirements: list[str]) -> None:
    """Save the models (name -> folder) as one MLflow model that answers requests: code, weights and no pickle."""
    from mlflow import pyfunc

    here = Path(__file__).parents[1]
    pyfunc.save_model(
        folder,
        python_model=str(here / "sample/mlflow_model.py"),
        artifacts={name: str(path) for name, path in models.items()},
        code_paths=[str(here), str(here.parent / "diffusion_core")],
        pip_requirements=requirements,
    )


def server_command(tracking: Tracking, root: Path, port: int) -> list[str]:
    """The command that serves the store and its page on 127.0.0.1."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri(tracking, root)]
    command += ["--default-artifact-root", (root / "mlruns").resolve().as_uri()]
    return [*command, "--host", "127.0.0.1", "--port", str(port)]


def ui(root: Path) -> int:
    """Serve the store's page on 127.0.0.1 until interrupted."""
    try:
        return subprocess.call(server_command(load(root / paths.PARAMS).tracking, root, 5000))
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    if sys.argv[1:] != ["ui"]:
        sys.exit("usage: python -m tasks.registry.tracking ui")
    try:
        sys.exit(ui(Path.cwd()))
    except UserError as error:
        sys.exit(f"contrapposto: {error}")
