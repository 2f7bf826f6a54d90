"""Classifiers of noisy examples: trained by their stage, used by `guidance.classifier`, absent by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError, UserError
from tasks.config.params import load
from tasks.config.sampling import Guidance, SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import model_file, sampler
from tasks.registry import model_registry
from tasks.sample import stage as sample
from tasks.train import classifier
from tests.support.workspaces import write_params, write_shards, write_untrained

SHORT = {"images": 3840, "batch": 64, "width": 16, "depth": 1, "heads": 2, "warmup_images": 0, "cooldown_images": 1920}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with models that have learned nothing, and a trained classifier for each of them."""
    root = tmp_path_factory.mktemp("classified")
    write_shards(root, val=100)
    both = {model: {**SHORT, "learning_rate": 5e-3} for model in paths.MODELS}
    params = load(write_params(root, classifier=both))
    for model in paths.MODELS:
        write_untrained(root, params, model)
        classifier.run(params, root, model)
    return root


@pytest.mark.parametrize("model", paths.MODELS)
def test_it_knows_little_noise_better_than_much(model: str, root: Path) -> None:
    told = files.read_json(paths.classifier_folder(root, model) / paths.CLASSIFIER_FILE)
    assert told["sha256"] == paths.sha256(paths.classifier_folder(root, model))
    shares = [told["accuracy"][f"{sigma:g}"] for sigma in classifier.SIGMAS]
    assert all(0 <= share <= 1 for share in shares)
    assert model != "poses" or (shares[0] >= 0.7 and shares[0] > shares[-1])  # guessing finds half


@pytest.mark.parametrize("model", paths.MODELS)
def test_samples_are_guided_towards_their_category(model: str, root: Path) -> None:
    sha256 = paths.sha256(paths.classifier_folder(root, model))
    trained = model_file.load(paths.model_folder(root, model), torch.device("cpu"))
    poses = ShardDataset(root / paths.SHARDS, "val").poses()[:2]
    cond = trained.conditions(["calm", "wild"], poses if model == "pictures" else None)
    params = load(root / paths.PARAMS)

    def draw(**guidance: Any) -> np.ndarray:
        how = SamplingChoices(steps=4, guidance=Guidance(**guidance))
        made = model_registry.sampler(params, root, paths.model_folder(root, model), how)
        drawn: np.ndarray = made.draw(cond, 0, torch.arange(2)).numpy()
        return drawn

    plain = sampler.draw(trained, cond, SamplingChoices(steps=4), 0, torch.arange(2)).numpy()
    assert np.array_equal(draw(scale=1.0, classifier=sha256), plain)
    guided = draw(scale=3.0, classifier=sha256)
    assert np.isfinite(guided).all() and np.abs(guided - plain).max() > 1e-3
    outside = draw(scale=3.0, classifier=sha256, interval=[1e5, 1e6])
    assert np.array_equal(outside, plain)


def test_the_stage_samples_with_it_and_the_same_training_has_the_same_bits(root: Path) -> None:
    sha256 = paths.sha256(paths.classifier_folder(root, "poses"))
    write_params(
        root, classifier={"poses": {**SHORT, "learning_rate": 5e-3}},
        sample__poses__guidance={"scale": 2.0, "classifier": sha256},
    )  # fmt: skip
    params = load(root / paths.PARAMS)
    sample.run(params, root, "poses")
    assert np.isfinite(ShardDataset(paths.sample_folder(root, "poses"), "samples").poses()).all()
    assert sha256 in params.sample.poses.words["guidance"]
    classifier.run(params, root, "poses")
    assert paths.sha256(paths.classifier_folder(root, "poses")) == sha256


def test_what_cannot_work_is_one_sentence(root: Path, tmp_path: Path) -> None:
    for changes, words in (
        ({"classifier": {"hands": {}}}, "there is no model 'hands'"),
        ({"classifier": {"poses": {"depth": 0}}}, "classifier.poses.depth"),
        (
            {"classifier": {"poses": {}}, "poses__recipe": "cold_mask", "sample__poses__sampler": "cold"},
            "classifier.poses does not go with recipe cold_mask",
        ),
        ({"classifier": {"poses": {}}, "poses__conditions": []}, "needs category in poses.conditions"),
        ({"sample__poses__guidance": {"scale": 2.0, "classifier": "best"}}, "classifier"),
        (
            {"sample__poses__guidance": {"scale": 2.0, "classifier": "0" * 64, "negative": "calm"}},
            "negative and classifier exclude each other",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(words)) as caught:
            load(write_params(tmp_path, **changes))
        assert "\n" not in str(caught.value)
    params = load(write_params(tmp_path))
    with pytest.raises(UserError, match=r"classifier\.poses is missing"):
        classifier.run(params, tmp_path, "poses")
    unknown = SamplingChoices(guidance=Guidance(scale=2.0, classifier="0" * 64))
    with pytest.raises(DataError, match="There is no classifier 0000"):
        model_registry.sampler(params, root, paths.model_folder(root, "poses"), unknown)
    model = model_file.load(paths.model_folder(root, "poses"), torch.device("cpu"))
    with pytest.raises(UserError, match="not at hand"):
        sampler.draw(model, model.conditions([None]), unknown, 0, torch.arange(1))
