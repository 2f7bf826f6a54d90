from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from diffusion_core.conditioning import Cond
from diffusion_core.schedules import Level
from tasks import paths
from tasks.common.files import read_json
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import membership_inference
from tasks.metrics.membership_inference import SIGMAS, auc, gaps, losses, sentence
from tasks.models import inputs, modality, model_file
from tests.support.evaluation_workspace import make
from tests.support.workspaces import write_params


def test_auc_is_the_mann_whitney_statistic_with_ties() -> None:
    rng = np.random.default_rng(0)
    train, heldout = rng.integers(0, 10, 60).astype(float), rng.integers(1, 11, 45).astype(float)
    expected = mannwhitneyu(heldout, train).statistic / (60 * 45)
    value, low, high = auc(train, heldout)
    assert value == pytest.approx(expected, rel=1e-12)
    assert low < value < high


def test_auc_interval_covers_the_truth() -> None:
    """Normal losses one deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(300):
        _, low, high = auc(rng.normal(0, 1, 80), rng.normal(1, 1, 60))
        inside += low <= 0.76025 <= high
    assert inside >= 0.91 * 300


def test_a_gap_among_few_examples_is_no_alarm() -> None:
    lucky, certain = np.arange(4.0)[None], np.arange(30.0)[None]
    assert not gaps((0.1,), lucky[:, :2], lucky[:, 2:])[0].alarming  # the AUC is 1, its variance seems to be 0
    found = gaps((0.1,), certain[:, :20], certain[:, 20:])
    assert found[0].auc == 1 and found[0].alarming
    assert sentence(found).startswith("The model knows its training examples")
    assert sentence([]).startswith("Too few examples")


def test_losses_of_a_denoiser_that_returns_its_input_are_one_per_coordinate() -> None:
    def lazy(x: torch.Tensor, level: Level, cond: Cond) -> torch.Tensor:
        return x

    found = losses(lazy, torch.zeros(300, 400), {}, (0.1, 1.0))
    assert found.mean(axis=1) == pytest.approx([1, 1], rel=0.01)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)  # the same noise at both levels
    np.testing.assert_array_equal(losses(lazy, torch.zeros(7, 400), {}, (0.1,))[0], found[0, :7])


def test_a_denoiser_that_has_memorized_is_detected_at_small_noise() -> None:
    """The exact denoiser of the empirical law of the training set."""
    generator = torch.Generator().manual_seed(0)
    train, heldout = torch.randn(100, 6, generator=generator), torch.randn(80, 6, generator=generator)

    def empirical(x: torch.Tensor, level: Level, cond: Cond) -> torch.Tensor:
        weight = torch.softmax(-(torch.cdist(x, train) ** 2) / (2 * float(level.sigma) ** 2), 1)
        return weight @ train

    sigmas = (0.1, 30.0)
    found = gaps(sigmas, losses(empirical, train, {}, sigmas), losses(empirical, heldout, {}, sigmas))
    assert found[0].auc > 0.99
    assert found[0].alarming
    assert found[1].low < 0.5 < found[1].high
    assert not found[1].alarming


def test_an_untrained_model_raises_no_alarm(tmp_path: Path) -> None:
    make(tmp_path, 40, 12, 8, 1, 1)
    params = load(write_params(tmp_path))
    about = ShardDataset(tmp_path / "data/shards", "train").about
    for name in paths.MODELS:
        config = modality.config_of(params, name)
        seen = inputs.examples(ShardDataset(tmp_path / "data/shards", "train"), config, ["stand"], mirrored=False)
        codec = inputs.fit_codec(seen.x0, per_coordinate=name == "poses")
        model = modality.build(name, config, ["stand"], codec, about["margin"])
        folder = tmp_path / "artifacts" / name
        folder.mkdir(parents=True)
        model_file.save(folder, model, dict(model.denoiser.state_dict()), {"digest": "0"})
    membership_inference.run(params, tmp_path)
    found = read_json(tmp_path / "reports/membership_inference/membership_inference.json")
    for entry in found["models"].values():
        assert not entry["alarm"]
        assert entry["sentence"].startswith("The model does not know its training examples")
        assert len(entry["levels"]) == len(SIGMAS)
    assert (tmp_path / "reports/membership_inference/membership_inference.png").is_file()
