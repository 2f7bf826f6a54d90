"""Samples: functions of model, seed, number and condition, and of nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import paths
from tasks.common import checkpoint
from tasks.common.errors import DataError
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import COMPARISON, NEW_POSES, SAMPLES, load_splits
from tasks.models import model_file
from tasks.sample import stage as sample
from tests.support.workspaces import write_awake, write_params, write_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample")
    write_params(root)
    write_shards(root)
    for name in paths.MODELS:
        write_awake(root, name)
    _run(root, "poses")
    _run(root, "pictures")
    return root


def _run(root: Path, name: str, **changes: object) -> ShardDataset:
    write_params(root, **{f"sample__{name}__{key}": value for key, value in changes.items()})
    sample.run(load(root / "params.yaml"), root, name)
    return ShardDataset(root / "samples" / name, "samples")


def test_batch_and_count_do_not_change_a_sample(root: Path) -> None:
    first = _run(root, "poses")
    reference, categories = first.poses(), [meta["category"] for meta in first.metas()]
    assert len(np.unique(reference[:, 0, 0])) == 24
    for change in ({"batch": 5}, {"count": 31, "batch": 31}):
        again = _run(root, "poses", **change)
        assert np.allclose(again.poses()[:24], reference, atol=1e-4)
        assert [meta["category"] for meta in again.metas()][:24] == categories
    assert not np.allclose(_run(root, "poses", seed=1).poses(), reference, atol=1e-2)
    _run(root, "poses")


def test_pictures_get_held_out_conditions_and_training_conditions_for_comparison(root: Path) -> None:
    train, heldout = load_splits(root)
    new = ShardDataset(root / "samples/poses", SAMPLES)
    _run(root, "pictures")
    sets = {name: ShardDataset(root / "samples/pictures", name) for name in (SAMPLES, COMPARISON, NEW_POSES)}
    assert {name: len(some) for name, some in sets.items()} == {SAMPLES: 24, COMPARISON: 8, NEW_POSES: 64}
    for name, source in ((SAMPLES, heldout), (COMPARISON, train), (NEW_POSES, new)):
        rows = {key: i for i, key in enumerate(source.keys)}
        asked = [rows[meta["condition"]] for meta in sets[name].metas()]
        assert np.array_equal(sets[name].poses(), source.poses()[asked])
        assert [meta["category"] for meta in sets[name].metas()] == [source.meta(i)["category"] for i in asked]
    assert len({meta["condition"] for meta in sets[SAMPLES].metas()}) > 12
    fixed = [meta["condition"] for meta in sets[NEW_POSES].metas()]
    assert len(set(fixed)) == 8 and fixed[:8] == fixed[:1] * 8
    assert len(np.unique(sets[NEW_POSES].pictures_uint8(16)[:8], axis=0)) == 8
    assert sets[SAMPLES].pictures_uint8(16).std(axis=0).mean() > 1
    assert (root / "samples/pictures/grid.png").is_file()


def test_guidance_changes_samples_and_one_is_no_guidance(root: Path) -> None:
    plain = _run(root, "poses").poses()
    assert np.array_equal(_run(root, "poses", guidance=1.0).poses(), plain)
    assert not np.allclose(_run(root, "poses", guidance=3.0).poses(), plain, atol=1e-3)
    _run(root, "poses")


def test_a_model_survives_its_file(root: Path) -> None:
    model = model_file.load(root / "artifacts/pictures", torch.device("cpu"))
    assert model.categories == ["calm", "wild"] and model.shape == (3, 16, 16)
    assert all(bool(value.any()) for value in model.denoiser.parameters())


def test_weights_of_another_version_are_refused(root: Path, tmp_path: Path) -> None:
    tensors, meta = checkpoint.load(root / "artifacts/poses" / paths.MODEL_FILE)
    name = next(name for name in tensors if name.startswith("weights.") and name.endswith(".weight"))
    tensors[name + "_g"] = tensors.pop(name)
    checkpoint.save(tmp_path / paths.MODEL_FILE, tensors, meta)
    with pytest.raises(DataError, match="was written by another version: its weights do not fit the network"):
        model_file.load(tmp_path, torch.device("cpu"))
