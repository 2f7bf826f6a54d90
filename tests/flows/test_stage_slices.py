"""Stages whose blocks are computed in slices: the bytes of the stage alone, for every number of slices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flows import slices, stage_inputs
from flows.remote_store import RemoteStore
from flows.slices import Slice
from tasks import paths
from tasks.__main__ import body
from tasks.common import blocks
from tasks.common.errors import DataError, UserError
from tasks.config.params import load
from tasks.evaluate import fidelity
from tasks.evaluate.memorization import stage as memorization
from tasks.evaluate.memorization.aligned_score import AlignedScorer
from tasks.evaluate.memorization.copy_score import ViewScorer
from tasks.metrics import picture_metrics
from tasks.metrics import torch_fidelity_networks as networks
from tasks.models.sampler import Sampler
from tasks.sample import stage as sample
from tests.support import evaluation_workspace
from tests.support.dvc_project import dvc
from tests.support.stage_slices import Engine, contents, emptied, run_in_slices
from tests.support.workspaces import write_awake, write_params, write_shards


@pytest.fixture
def root(workspace: Path) -> Path:
    """A DVC workspace with shards, models and the project's graph."""
    emptied(workspace)
    _set(workspace)
    write_shards(workspace)
    for name in paths.MODELS:
        write_awake(workspace, name)
    return workspace


def _set(root: Path, world: int = 0) -> None:
    """Write params.yaml, with samples that need several batches."""
    few = {"count": 12, "batch": 5}
    changes = {f"sample__{model}__{key}": value for model in paths.MODELS for key, value in few.items()}
    write_params(root, engine={"kind": "local", "slices": world}, sample__train_conditions=3, **changes)


def _outputs(root: Path, model: str) -> dict[str, bytes]:
    return contents(paths.sample_folder(root, model))


def _in_slices(root: Path, model: str, engine: Engine, patch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The stage's outputs after slices; it may not sample anything itself."""
    run_in_slices(root, f"sample_{model}", engine, patch, (Sampler, "latents"))
    return _outputs(root, model)


@pytest.mark.parametrize("world", [1, 3])
def test_samples_are_the_same_bytes_for_every_number_of_slices(
    root: Path, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in paths.MODELS:
        sample.run(load(root / "params.yaml"), root, model)
    expected = {model: _outputs(root, model) for model in paths.MODELS}
    _set(root, world)
    for model in paths.MODELS:
        assert _in_slices(root, model, Engine([root]), monkeypatch) == expected[model]
    assert len(expected["pictures"]) > 2
    assert not list((root / paths.SLICES).rglob("*.*"))  # `forget` knows nothing of copies


@pytest.mark.slow
def test_the_copy_search_is_the_same_bytes_in_slices(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation_workspace.make(root, 40, 15, 10, 270, 15, copied=2, copied_on_demand=2)
    write_params(root, engine={"kind": "local", "slices": 2}, memorization__planted=100)
    memorization.run(load(root / "params.yaml"), root)
    expected = {path.name: path.read_bytes() for path in (root / paths.MEMORIZATION).iterdir()}
    scorers = (AlignedScorer, "score"), (ViewScorer, "score")
    run_in_slices(root, "memorization", Engine([root]), monkeypatch, *scorers)
    found = {path.name: path.read_bytes() for path in (root / paths.MEMORIZATION).iterdir()}
    assert found == expected and "memorization.json" in found


def test_the_features_of_networks_are_the_same_bytes_in_slices(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation_workspace.make(root, 12, 4, 3, 5, 12, copied_on_demand=5)
    loaded = networks.Network(torch.nn.Identity(), {"network": "means"})
    monkeypatch.setattr(networks, "load", lambda name, weights, root: loaded)
    monkeypatch.setattr(networks.Network, "__call__", lambda self, x: {"features": x.mean((1, 2), dtype=np.float32)})
    monkeypatch.setattr(picture_metrics, "PICTURE_ROWS", 5)
    given = {"source": "none.pt", "sha256": "0" * 64}
    write_params(root, engine={"kind": "local", "slices": 2}, fidelity__clip=given)
    fidelity.run(load(root / "params.yaml"), root)
    expected = (root / paths.FIDELITY / "fidelity.json").read_bytes()
    known = {path.name: path.read_bytes() for path in (root / paths.FEATURES).iterdir()}
    assert b"pictures.clip_kernel_distance" in expected and len(known) == 4
    shutil.rmtree(root / paths.FEATURES)
    run_in_slices(root, "fidelity", Engine([root]), monkeypatch, (networks.Network, "__call__"))
    assert (root / paths.FIDELITY / "fidelity.json").read_bytes() == expected
    assert {path.name: path.read_bytes() for path in (root / paths.FEATURES).iterdir()} == known


def test_workers_with_nothing_but_the_code_fetch_the_inputs(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.run(load(root / "params.yaml"), root, "poses")
    expected = _outputs(root, "poses")
    _set(root, 2)
    dvc(root, "remote", "modify", "local", "url", str(tmp_path / "remote"))
    worker = tmp_path / "worker"
    shutil.copytree(root, worker, symlinks=True, ignore=shutil.ignore_patterns("data", "artifacts", "samples"))
    write_params(worker)  # another seed, say: the parameters are those of the machine that asks
    assert _in_slices(root, "poses", Engine([worker, root]), monkeypatch) == expected
    assert not (worker / "artifacts").exists()


def test_damaged_results_and_inputs_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(root, 2)
    _in_slices(root, "poses", Engine([root]), monkeypatch)
    store = RemoteStore(root)
    inputs = stage_inputs.of(load(root / "params.yaml"), root, "sample_poses")
    piece = Slice("sample_poses", 0, 2, slices.code_digest(), inputs.version)
    other = tmp_path / "other.npz"
    store.get_file(piece.stored, blocks.file_name(2), other)
    store.put_file(other, piece.stored, blocks.file_name(0))
    with pytest.raises(DataError, match="damaged"):
        _in_slices(root, "poses", Engine([root]), monkeypatch)
    name, digest = next(iter(inputs.files.items()))
    store.put_bytes(b"something else", stage_inputs.INPUTS, digest)
    (root / name).unlink()
    shutil.rmtree(root / paths.SLICES)
    with pytest.raises(DataError, match="damaged"):
        stage_inputs.provide(root, "sample_poses", inputs.version, store)


def test_results_outside_of_the_folder_of_blocks_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _set(root, 1)
    store = RemoteStore(root)
    version = stage_inputs.of(load(root / "params.yaml"), root, "sample_poses").version
    piece = Slice("sample_poses", 0, 1, slices.code_digest(), version)
    outside = f"../{blocks.file_name(0)}"
    store.put_bytes(json.dumps({"total": 1, "blocks": {outside: "0" * 64}}).encode(), piece.stored, blocks.MARK)
    with pytest.raises(DataError, match="outside"):
        _in_slices(root, "poses", Engine([root]), monkeypatch)


def test_inputs_outside_of_the_workspace_are_refused(root: Path) -> None:
    store = RemoteStore(root)
    store.put_bytes(json.dumps({"files": {"../x": "0" * 64}, "params": ""}).encode(), "inputs/1", stage_inputs.MANIFEST)
    with pytest.raises(DataError, match="outside"):
        stage_inputs.provide(root, "sample_poses", "1", store)


def test_another_seed_is_another_version(root: Path) -> None:
    first = stage_inputs.of(load(root / "params.yaml"), root, "sample_poses").version
    write_params(root, engine={"kind": "local", "slices": 5}, sample__poses__count=12, sample__poses__batch=5)
    changed = stage_inputs.of(load(root / "params.yaml"), root, "sample_poses").version
    write_params(root, engine={"kind": "ray"}, sample__poses__count=12, sample__poses__batch=5)
    assert first != changed == stage_inputs.of(load(root / "params.yaml"), root, "sample_poses").version


@pytest.mark.parametrize(
    "wrong", ["2 2 0 0 0 sample", "a 2 0 0 0 sample", "0 1 5 5 0 sample", "0 1 0 0 0 forget", "0 1 0 0 0"]
)
def test_an_impossible_slice_is_a_user_error(root: Path, tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UserError):
        body("stage_slice")(load(root / "params.yaml"), root, str(tmp_path / "x"), *wrong.split())
