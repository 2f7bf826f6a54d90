"""Changes of our own models: the base at the start, new categories, merging, resumption, a model like any other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tasks import paths
from tasks.adapt import own, prior, stage
from tasks.common.errors import DataError, UserError
from tasks.config.adapt import OwnChange
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import model_file
from tasks.models.inputs import as_pictures
from tasks.models.modality import Model
from tasks.models.sampler import Sampler, draw
from tests.support.training import interrupted_at
from tests.support.workspaces import write_awake, write_params, write_shards

CPU = torch.device("cpu")
SECTION = {
    "categories": ["wild"], "rank": 2, "alpha": 6.0, "images": 96, "batch": 16, "checkpoint_images": 32, "learning_rate": 1e-2,
    "ema_halflife_images": 16, "certificate": 0,
}  # fmt: skip


METHODS = ("lora", "dreambooth", "textual_inversion", "fine_tuning")


def workspace(root: Path, known: Sequence[str] = ("calm", "wild"), kind: str = "pictures", **changes: Any) -> Path:
    """Shards of the categories calm and wild, and a model that knows some of them."""
    write_params(root)
    write_shards(root)
    write_awake(root, kind, known)
    sha256 = paths.sha256(root / "artifacts" / kind)
    write_params(root, adapt={f"{kind}_adapted": {**SECTION, "of": sha256, **changes}})
    return root


def train(root: Path, kind: str = "pictures") -> Path:
    torch.set_num_threads(1)
    stage.run(load(root / "params.yaml"), root, f"{kind}_adapted")
    return root / f"artifacts/{kind}_adapted"


def drawn(model: Model, root: Path, categories: Sequence[str | None] = ("wild", "calm", None, "new")) -> Tensor:
    poses = ShardDataset(root / "data/shards", "val").poses()[: len(categories)]
    return draw(model, model.conditions(categories, poses), SamplingChoices(steps=3), 0, torch.arange(len(categories)))


def weights(model: Model) -> list[Tensor]:
    return list(model.denoiser.state_dict().values())


def base(root: Path, kind: str = "pictures") -> Model:
    return model_file.load(root / "artifacts" / kind, CPU)


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


OLD = ("calm", None, "calm")  # what a model that does not know `wild` is asked for


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("young"), known=["calm"])


@pytest.mark.parametrize("method", METHODS)
def test_before_training_a_new_category_leaves_the_old_ones_as_they_were_bit_for_bit(method: str, young: Path) -> None:
    model = base(young)
    section = OwnChange.model_validate({"method": method, "categories": ["wild"]})
    larger, changed, adapter = own.untrained(model, section, ["wild", "tame"])
    assert changed.categories == ["calm", "wild", "tame"] and (adapter is None) == (method == "fine_tuning")
    plain = drawn(model, young, OLD)
    assert torch.equal(drawn(larger, young, OLD), plain) and torch.equal(drawn(changed, young, OLD), plain)
    # With one known category, the mean of its embedding is its own.
    assert torch.equal(drawn(changed, young, ["wild", None, "tame"]), plain)
    trained = {name for name, p in changed.denoiser.named_parameters() if p.requires_grad}
    if method == "textual_inversion":
        assert trained == {"net.adapter.layers.embedding/conds/category.columns"}
    elif method == "fine_tuning":
        assert trained == {name for name, _ in changed.denoiser.named_parameters()}


@pytest.mark.parametrize("net", ["patch", "dit", "mmdit", "uvit", "hourglass", "unet", "simple_uvit"])
def test_every_network_whose_weights_have_no_norm_grows(net: str, tmp_path: Path) -> None:
    conditions = ["category", "pose_map", *(["pose_tokens"] if net == "mmdit" else [])]
    shape = {"pictures__depth": 2, "pictures__patch": 2, "pictures__conditions": conditions}
    path = write_params(tmp_path, pictures__net=net, **shape)
    write_shards(tmp_path)
    write_awake(tmp_path, "pictures")
    model = base(tmp_path)
    assert load(path).pictures.net == net
    asked = ("calm", "wild", None)
    assert torch.equal(drawn(own.grown(model, ["tame"]), tmp_path, asked), drawn(model, tmp_path, asked))


def test_a_network_whose_weights_have_a_norm_is_refused(tmp_path: Path) -> None:
    write_params(tmp_path, pictures__net="edm2", pictures__patch=1)
    write_awake(tmp_path, "pictures")
    with pytest.raises(UserError):
        own.grown(base(tmp_path), ["tame"])


def test_a_word_for_what_the_model_knows_is_refused(root: Path) -> None:
    with pytest.raises(UserError):
        own.untrained(base(root), OwnChange.model_validate({"method": "textual_inversion"}), [])


@pytest.mark.parametrize("wrong", [{"method": "dreambooth"}, {"method": "fine_tuning", "scale": 0.5}])
def test_methods_without_what_they_need_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        OwnChange.model_validate(wrong)


def test_a_prior_of_categories_that_are_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        train(workspace(tmp_path, method="dreambooth", categories=["calm", "wild"]))


@pytest.fixture(scope="module")
def dreamt(young: Path) -> Path:
    write_params(young, adapt={"pictures_adapted": dreambooth(young)})
    return train(young)


def dreambooth(root: Path, kind: str = "pictures") -> dict[str, Any]:
    return {**SECTION, "of": paths.sha256(root / "artifacts" / kind), "method": "dreambooth", "prior": 8}


@pytest.mark.slow
def test_dreambooth_teaches_a_new_category_and_is_a_model_like_any_other(young: Path, dreamt: Path) -> None:
    finished, (changed, _) = model_file.load(dreamt, CPU), own.load(dreamt, base(young))
    asked = ["wild", "calm", None]
    assert finished.categories == changed.categories == ["calm", "wild"] and finished.errors
    assert torch.allclose(drawn(finished, young, asked), drawn(changed, young, asked), atol=1e-5)
    assert not torch.equal(*drawn(finished, young, ["wild", "calm"])[:, None])
    training = json.loads((dreamt / "training.json").read_text())
    assert all(row["val"] and row["gaps"] for row in training["levels"])
    trained_on = json.loads((dreamt / "trained_on.json").read_text())
    assert len(trained_on["keys"]) == 30 and not any(key.startswith("prior") for key in trained_on["keys"])
    assert trained_on["shards"] == ShardDataset(young / "data/shards", "train").digests()


@pytest.mark.slow
def test_dreambooth_killed_and_resumed_has_the_same_bits(dreamt: Path, tmp_path: Path) -> None:
    again = workspace(tmp_path, known=["calm"])
    write_params(again, adapt={"pictures_adapted": dreambooth(again)})
    with interrupted_at(32):
        train(again)
    folder = train(again)
    for name in ("model.safetensors", "adapter.safetensors", "training.json"):
        assert (folder / name).read_bytes() == (dreamt / name).read_bytes(), name


def test_half_of_the_examples_are_what_the_model_draws(young: Path) -> None:
    params, model = load(young / "params.yaml"), base(young)
    samples = ShardDataset(young / "data/shards", "train")
    calm, wild = (
        samples.take([i for i, meta in enumerate(samples.metas()) if meta["category"] == category])
        for category in ("calm", "wild")
    )
    asked = calm.take(range(8))
    sampler = Sampler(model, params.sample.pictures)
    made = prior.drawn(young, sampler, asked, 3, "0" * 64)
    wanted = as_pictures(sampler.draw(model.examples(asked).cond, 3, torch.arange(8)))
    assert np.array_equal(made.pictures_uint8(16), wanted)
    both = prior.beside(young, "some", wild, made, pictured=True)
    assert both.keys[0::2] == wild.keys[:] and both.keys[1::2] == [f"prior-{i % 8:06d}" for i in range(30)]
    assert [meta["category"] for meta in both.take(range(4)).metas()] == ["wild", "calm", "wild", "calm"]
    assert np.array_equal(both.take(range(1, 16, 2)).pictures_uint8(16), wanted)
    fewer = prior.beside(young, "some", wild.take(range(4)), made, pictured=True)
    assert len(fewer) == 16 and fewer.folder.is_dir() and not both.folder.exists()


@pytest.mark.slow
def test_a_word_leaves_the_old_categories_as_they_were_bit_for_bit(tmp_path: Path) -> None:
    root = workspace(tmp_path, known=["calm"], method="textual_inversion")
    finished, model = model_file.load(train(root), CPU), base(root)
    assert torch.equal(drawn(finished, root, OLD), drawn(model, root, OLD))
    assert not torch.equal(drawn(finished, root, ["wild"]), drawn(model, root, ["calm"]))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dreambooth", "fine_tuning"])
def test_a_pose_model_learns_a_new_category(method: str, tmp_path: Path) -> None:
    root = workspace(tmp_path, known=["calm"], kind="poses", method=method, prior=8)
    folder = train(root, "poses")
    finished = model_file.load(folder, CPU)
    assert finished.categories == ["calm", "wild"] and finished.meta["adapted"]["method"] == method
    assert (folder / own.ADAPTER).is_file() == (method == "dreambooth")
    assert not torch.equal(*drawn(finished, root, ["wild", "calm"])[:, None])
