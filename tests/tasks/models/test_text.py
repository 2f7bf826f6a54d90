"""Text as a condition of our own models: from the shards to the network, and away from a negative prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_core.codecs import Affine
from tasks.common.errors import DataError, UserError
from tasks.config.params import load
from tasks.config.sampling import Guidance, SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import inputs, modality, model_file
from tasks.models.modality import EmbeddedText, Model
from tasks.models.sampler import Sampler
from tests.support.workspaces import write_params, write_shards

ENCODER = {"source": "encoder", "sha256": "0" * 64, "length": 3, "template": "a {category} one"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    write_params(root, pictures__conditions=["category", "pose_map", "text"], shard__text=ENCODER)
    write_shards(root, captions=True)
    return root


def model_of(root: Path) -> Model:
    """A model whose last layers are not zero, so that conditions matter."""
    config, train = load(root / "params.yaml").pictures, ShardDataset(root / "data/shards", "train")
    affine = Affine(torch.zeros(()), torch.ones(()))
    text = EmbeddedText.of(train, config)
    model = modality.build("pictures", config, ["calm", "wild"], affine, 0.08, text=text)
    generator = torch.Generator().manual_seed(0)
    for value in model.denoiser.parameters():
        if not value.any():
            value.data = torch.randn(value.shape, generator=generator) * 0.2
    model.denoiser.eval().requires_grad_(False)
    return model


def test_captions_are_those_of_the_samples_or_of_their_category(root: Path) -> None:
    train = ShardDataset(root / "data/shards", "train")
    assert train.captions("a {category} one")[:4] == ["somebody", "a wild one", "a calm one", "somebody"]
    texts = train.texts()
    assert texts.shape == (60, 3, 5)
    assert np.array_equal(texts[0], texts[3]) and not np.array_equal(texts[0], texts[1])
    assert np.array_equal(train.texts_of(["a calm one"])[0], texts[2])
    with pytest.raises(DataError):
        train.texts_of(["nobody"])
    examples = inputs.examples(train, load(root / "params.yaml").pictures, ["calm", "wild"], mirrored=True)
    assert np.array_equal(examples.cond["tok:text"][63].numpy(), texts[3])


def test_the_text_matters_and_without_it_the_model_is_withheld_from_it(root: Path, tmp_path: Path) -> None:
    model = model_of(root)
    names, texts = ["calm", "calm"], ShardDataset(root / "data/shards", "train").texts_of(["somebody", "a wild one"])
    poses = np.zeros((2, 33, 3), np.float32)
    drawn = Sampler(model, SamplingChoices(steps=2))
    ids = torch.zeros(2, dtype=torch.int64)
    one, other = drawn.draw(model.conditions(names, poses, texts), 0, ids)
    assert (one - other).abs().max() > 1e-3
    withheld = drawn.draw(model.conditions(names, poses), 0, ids)
    assert torch.allclose(withheld[0], withheld[1], atol=1e-6) and (withheld[0] - one).abs().max() > 1e-3

    model_file.save(tmp_path, model, dict(model.denoiser.state_dict()), {"digest": "none"})
    loaded = model_file.load(tmp_path, torch.device("cpu"))
    assert loaded.text == model.text
    assert torch.equal(
        Sampler(loaded, SamplingChoices(steps=2)).draw(model.conditions(names, poses, texts), 0, ids)[0], one
    )


def test_a_negative_prompt_is_what_guidance_leads_away_from(root: Path) -> None:
    model = model_of(root)
    train = ShardDataset(root / "data/shards", "train")
    poses = np.zeros((2, 33, 3), np.float32)
    cond = model.conditions(["calm", "wild"], poses, train.texts_of(["somebody", "a wild one"]))
    ids = torch.arange(2)
    plain = Sampler(model, SamplingChoices(steps=2)).draw(cond, 0, ids)
    how = SamplingChoices(steps=2, guidance=Guidance(scale=3.0, negative_prompt="a wild one"))
    guided = Sampler(model, how, unwanted=train.texts_of(["a wild one"])).draw(cond, 0, ids)
    assert (guided[0] - plain[0]).abs().max() > 1e-3
    assert torch.allclose(guided[1], plain[1], atol=1e-4)  # what is wanted is what is unwanted
    with pytest.raises(UserError):
        Sampler(model, how).draw(cond, 0, ids)


def test_text_needs_an_encoder_and_a_model_that_was_trained_with_it(root: Path, tmp_path: Path) -> None:
    path = write_params(tmp_path, pictures__conditions=["category", "text"])
    with pytest.raises(UserError):
        load(path)
    for change in (
        {"sample__pictures__prompt": "a cat"},
        {"sample__pictures__guidance": {"scale": 2.0, "negative_prompt": "a cat"}},
    ):
        with pytest.raises(UserError):
            load(write_params(tmp_path, **change))
    write_shards(tmp_path, train=4, val=2, test=2)
    with pytest.raises(DataError):
        ShardDataset(tmp_path / "data/shards", "train").texts()
