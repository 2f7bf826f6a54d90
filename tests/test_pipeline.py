"""The whole pipeline, small but real: MediaPipe, DVC with a remote, a Prefect server, MLflow, two trained models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tasks.common import files
from tasks.config.params import set_value
from tests.support.workspaces import small_project

STAGES = {
    "mannequin", "list_parts", "extract@mannequin", "curate", "shard", "dataset_card", "train_poses", "train_codec",
    "train_pictures", "train_upscaler", "train_recogniser", "sample_poses", "sample_pictures", "memorization",
    "membership_inference", "pose_accuracy", "codec_quality", "fidelity", "promote", "report",
}  # fmt: skip


def _call(root: Path, *command: str, code: int = 0) -> str:
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    result = subprocess.run(
        command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert result.returncode == code, result.stdout
    return result.stdout


def _flow(root: Path, code: int = 0, *arguments: str) -> str:
    return _call(root, sys.executable, "-m", "flows", "train-poses", *arguments, code=code)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = small_project(tmp_path_factory.mktemp("project") / "contrapposto")
    output = _flow(root)
    assert "persons kept" in output and "Traceback" not in output
    return root


def _runs(root: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    return client.search_runs([e.experiment_id for e in client.search_experiments()], order_by=["start_time ASC"])


def _hashes(root: Path) -> dict[str, str]:
    """What each stage's outputs hash to, by dvc.lock."""
    lock = YAML(typ="safe", pure=True).load((root / "dvc.lock").read_text())
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_every_stage_ran_and_left_its_outputs(finished: Path) -> None:
    lock = YAML(typ="safe", pure=True).load((finished / "dvc.lock").read_text())
    assert set(lock["stages"]) == STAGES
    html = (finished / "reports/report.html").read_text()
    assert html.count("data:image/png;base64,") >= 10
    assert "http://" not in html and "https://" not in html and 'src="/' not in html


def test_rows_are_conserved_from_files_to_shards(finished: Path) -> None:
    extraction = files.read_json(finished / "data/poses/mannequin/summary.json")
    curation = files.read_json(finished / "data/dataset/summary.json")
    index = files.read_json(finished / "data/shards/index.json")
    assert extraction["files"] == 60 == extraction["files_with_person"] + sum(extraction["rejects"].values())
    assert extraction["persons"] == curation["persons_kept"] + sum(curation["gated"].values())
    assert {split: entry["samples"] for split, entry in index["splits"].items()} == curation["splits"]
    assert sum(curation["splits"].values()) == curation["persons_kept"] > 40


def test_mlflow_has_one_pipeline_run_with_a_nested_run_for_each_model(finished: Path) -> None:
    runs = [run for run in _runs(finished) if run.data.tags["mlflow.runName"].startswith("pipeline")][:1]
    (pipeline,) = runs
    nested = [r for r in _runs(finished) if r.data.tags.get("mlflow.parentRunId") == pipeline.info.run_id]
    assert sorted(run.data.tags["contrapposto.model"] for run in nested) == ["codec", "pictures", "poses"]
    assert {run.info.status for run in (pipeline, *nested)} == {"FINISHED"}
    flow_run = pipeline.data.tags["prefect.flow_run_id"]
    assert all(run.data.tags["prefect.flow_run_id"] == flow_run for run in nested)
    assert pipeline.data.tags["dvc.data/shards"] == _hashes(finished)["data/shards"]
    assert pipeline.data.metrics["data.files"] == 60


def test_a_second_run_skips_everything(finished: Path) -> None:
    before, runs = (finished / "dvc.lock").read_bytes(), len(_runs(finished))
    output = _flow(finished)
    assert output.count("unchanged") == len(STAGES)
    assert (finished / "dvc.lock").read_bytes() == before and len(_runs(finished)) == runs
    # the listing of the parts is made at every `dvc repro`
    assert _call(finished, sys.executable, "-m", "dvc", "repro").count("Running stage") == 1
    assert (finished / "dvc.lock").read_bytes() == before


def test_push_and_pull_bring_everything_back(finished: Path) -> None:
    dvc = (sys.executable, "-m", "dvc")
    _call(finished, *dvc, "push")
    before = _hashes(finished)
    for folder in ("data/shards", "artifacts", "samples", "reports", ".dvc/cache"):
        shutil.rmtree(finished / folder)
    _call(finished, *dvc, "pull")
    assert (finished / "reports/report.html").is_file()
    assert _hashes(finished) == before
    assert _call(finished, *dvc, "status").split() == ["list_parts:", "always", "changed"]


def test_a_changed_parameter_is_seen_by_the_stages_that_read_it_and_no_other(finished: Path) -> None:
    before = (finished / "params.yaml").read_bytes()
    set_value(finished / "params.yaml", "sample.pictures.seed", 7)
    status = json.loads(_call(finished, sys.executable, "-m", "dvc", "status", "--json"))
    (finished / "params.yaml").write_bytes(before)
    assert set(status) == {"list_parts", "sample_pictures", "promote"}


@pytest.mark.slow
def test_a_changed_parameter_reruns_its_stage_and_those_below(finished: Path) -> None:
    set_value(finished / "params.yaml", "sample.pictures.seed", 7)
    before = _hashes(finished)
    output = _flow(finished)
    done = {name for name in STAGES if f"{name}: done in" in output}
    assert done == {"sample_pictures", "memorization", "pose_accuracy", "fidelity", "promote", "report"}
    changed = {path for path, digest in _hashes(finished).items() if before[path] != digest}
    assert "samples/pictures" in changed and "samples/poses" not in changed and "data/shards" not in changed


@pytest.mark.slow
def test_nobody_found_is_a_sentence_and_an_exit_code(tmp_path: Path) -> None:
    from PIL import Image

    root = small_project(tmp_path / "contrapposto")
    (tmp_path / "walls").mkdir()
    for i in range(3):
        Image.new("RGB", (128, 128), (40 * i, 90, 120)).save(tmp_path / f"walls/{i}.png")
    output = _flow(root, 3, "--raw", str(tmp_path / "walls"))
    assert "Nobody was found in the 3 files" in output and "Traceback" not in output
    output = _flow(root, 3, "--raw", str(tmp_path / "nowhere"))
    assert "no folder" in output and "Traceback" not in output


@pytest.mark.slow
def test_dvc_alone_gives_the_same_lock_as_the_flow(finished: Path, tmp_path: Path) -> None:
    root = small_project(tmp_path / "contrapposto")
    shutil.copyfile(finished / "params.yaml", root / "params.yaml")
    _call(root, sys.executable, "-m", "dvc", "repro")
    assert _hashes(root) == _hashes(finished)
