"""The MLflow run of a pipeline run: its parameters, lineage, metrics and report."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from diffusion_core import method_tables
from tasks import paths
from tasks.common import experiment, files
from tasks.config.params import Params
from tasks.registry.tracking import PIPELINE, Run, Store


def start(params: Params, root: Path, flow_run_id: str | None, name: str | None = None) -> str:
    """Open the MLflow run with all parameters; returns its id. By default it is named after the parts and the time."""
    store = Store(params.tracking, root)
    store.sweep()
    tags = {"contrapposto.kind": "pipeline"}
    if flow_run_id:
        tags["prefect.flow_run_id"] = flow_run_id
    for model, net in (("poses", params.poses), ("pictures", params.pictures)):
        tags[f"contrapposto.net.{model}"] = f"{net.net_name} {net.shape.width} x {net.shape.depth}"
        words = method_tables.of_training(net.training) | getattr(params.sample, model).words
        tags |= {f"contrapposto.{table}.{model}": method for table, method in words.items()}
    usual = f"pipeline {', '.join(sorted(params.raw.parts))} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    run = store.start(name or usual, tags)
    run.params(params.model_dump())
    return run.id


def record_experiment(params: Params, root: Path) -> None:
    """Record what a DVC experiment found, as a run that has the experiment's name. Its last stage calls this.

    Does nothing if this is no experiment, or if a flow records the run anyway.
    """
    name = experiment.name()
    if name is None or PIPELINE in os.environ:
        return
    run = Run(Store(params.tracking, root), start(params, root, None, name))
    run.tag(**{"contrapposto.experiment": name})
    finish(params, root, run.id, "FINISHED", {})


def finish(params: Params, root: Path, run_id: str, status: str, stages: Mapping[str, str]) -> None:
    """Close the MLflow run with its lineage, metrics and report.

    `status`: FINISHED, FAILED or KILLED. `stages`: stage -> its last state. Metrics, dataset and report are logged only if
    the run FINISHED, since those in the workspace may come from an earlier run.
    """
    run = Run(Store(params.tracking, root), run_id)
    run.tag(**{f"stage.{stage.replace('@', '/')}": state for stage, state in stages.items()})  # MLflow allows no @
    lock = root / "dvc.lock"
    if lock.is_file():
        # dvc.lock keeps entries of parts that were removed.
        run.tag(**{out: md5 for out, md5 in lock_hashes(lock).items() if (root / out.removeprefix("dvc.")).exists()})
        run.artifact(lock)
    if status == "FINISHED":
        summary = files.read_json(root / paths.SUMMARY / "summary.json")
        run.log([(name, value, 0) for name, value in summary["metrics"].items()])
        for page in sorted((root / paths.REPORTS).glob("*.html")):  # the report, and the card of the dataset
            run.artifact(page)
        run.dataset(root, params.raw.parts)
        run.tag(**_findings(root))
        for picture in sorted(
            [*(root / paths.REPORTS).glob("*/*.png"), *(root / paths.SAMPLES).glob(f"*/{paths.GRID}")]
        ):
            run.artifact(picture, f"pictures/{picture.parent.name}")
    run.finish(status)


def _findings(root: Path) -> dict[str, str]:
    """Tags for the list of runs: the dataset, the verdicts, and whether the models were promoted."""
    tags = {}
    index, memorization = root / paths.SHARDS / paths.SHARD_INDEX, root / paths.MEMORIZATION / "memorization.json"
    if index.is_file():
        tags["contrapposto.dataset_sha256"] = hashlib.sha256(index.read_bytes()).hexdigest()
    if memorization.is_file():
        verdicts = files.read_json(memorization)["verdicts"]
        tags |= {f"contrapposto.verdict.{what}": verdict for what, verdict in verdicts.items()}
    promoted = root / paths.PROMOTE / "promote.json"
    if promoted.is_file():
        decision = files.read_json(promoted)
        sentences = " ".join(decision.get("warnings", []) if decision["promote"] else decision["reasons"])
        tags["contrapposto.promoted"] = ("yes" if decision["promote"] else "no") + (
            f": {sentences}" if sentences else ""
        )
    return tags


def lock_hashes(lock: Path) -> dict[str, str]:
    """`dvc.<path>` -> hash of every output in a dvc.lock."""
    stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8"))["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {f"dvc.{out['path']}": out["md5"] for out in outs if "md5" in out}
