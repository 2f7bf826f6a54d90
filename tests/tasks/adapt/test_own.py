"""LoRA of our own picture model: the base at the start, merging, resumption, a model like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tasks import paths
from tasks.adapt import own, stage
from tasks.common.errors import DataError, UserError
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import model_file
from tasks.models.modality import Model
from tasks.models.sampler import draw
from tests.support.training import interrupted_at
from tests.support.workspaces import write_awake, write_params, write_shards

CPU = torch.device("cpu")
SECTION = {
    "categories": ["wild"], "rank": 2, "alpha": 6.0, "images": 96, "batch": 16, "checkpoint_images": 32, "learning_rate": 1e-2,
    "ema_halflife_images": 16, "certificate": 0,
}  # fmt: skip


def workspace(root: Path, **changes: Any) -> Path:
    write_params(root)
    write_shards(root)
    write_awake(root, "pictures")
    sha256 = paths.sha256(root / "artifacts/pictures")
    write_params(root, adapt={"pictures_adapted": {**SECTION, "of": sha256, **changes}})
    return root


def train(root: Path) -> Path:
    torch.set_num_threads(1)
    stage.run(load(root / "params.yaml"), root, "pictures_adapted")
    return root / "artifacts/pictures_adapted"


def drawn(model: Model, root: Path) -> Tensor:
    poses = ShardDataset(root / "data/shards", "val").poses()[:4]
    cond = model.conditions(["wild", "calm", None, "new"], poses)
    return draw(model, cond, SamplingChoices(steps=3), 0, torch.arange(4))


def weights(model: Model) -> list[Tensor]:
    return list(model.denoiser.state_dict().values())


def base(root: Path) -> Model:
    return model_file.load(root / "artifacts/pictures", CPU)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="module")
def trained(root: Path) -> Path:
    return train(root)


def test_an_untrained_adapter_and_one_of_rank_zero_are_the_base_bit_for_bit(root: Path) -> None:
    model = base(root)
    plain = drawn(model, root)
    for rank in (0, 2):
        changed, adapter = own.adapted(model, rank)
        assert torch.equal(drawn(changed, root), plain)
        assert bool(adapter.named()) == bool(rank)
        assert all(torch.equal(a, b) for a, b in zip(own.merged(model, adapter).values(), weights(model), strict=True))
    with pytest.raises(UserError):
        own.adapted(model, 2, names=["nothing"])


@pytest.mark.slow
def test_the_finished_model_is_the_base_with_the_change_and_a_model_like_any_other(root: Path, trained: Path) -> None:
    model, finished = base(root), model_file.load(trained, CPU)
    changed, adapter = own.load(trained, model)
    merged = drawn(finished, root)
    assert torch.allclose(merged, drawn(changed, root), atol=1e-5)
    assert (merged - drawn(model, root)).abs().max() > 1e-2
    adapter.scaled(0.0)
    assert torch.equal(drawn(changed, root), drawn(model, root))
    assert finished.categories == ["calm", "wild"] and finished.errors
    training = json.loads((trained / "training.json").read_text())
    assert all(row["val"] and row["gaps"] for row in training["levels"])
    keys = json.loads((trained / "trained_on.json").read_text())["keys"]
    assert len(keys) == 30  # half of the shards are wild


@pytest.mark.slow
def test_killed_and_resumed_it_has_the_same_bits(root: Path, trained: Path, tmp_path: Path) -> None:
    again = workspace(tmp_path)
    with interrupted_at(32):
        train(again)
    folder = train(again)
    for name in ("model.safetensors", "adapter.safetensors", "training.json"):
        assert (folder / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.slow
def test_scale_zero_is_the_base_and_the_certificate_is_there(tmp_path: Path) -> None:
    root = workspace(tmp_path, scale=0.0, images=16, certificate=50)
    finished = model_file.load(train(root), CPU)
    assert all(torch.equal(a, b) for a, b in zip(weights(finished), weights(base(root)), strict=True))
    report = json.loads((root / "artifacts/pictures_adapted/certificate.json").read_text())
    assert report["folders"]["heldout"]["pictures"] == 10 and report["folders"]["samples"]["pictures"] == 50


def test_categories_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(workspace(tmp_path, categories=["flying"]))
