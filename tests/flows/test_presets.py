"""Presets: they fit params.yaml, replace each other completely, and their models have the sizes that they state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from diffusion_core.nets.autoencoder import Autoencoder
from diffusion_core.nets.cost import count_parameters, flops
from flows import presets
from tasks.common.errors import UserError
from tasks.config.params import Params, load, parse
from tasks.dataset.pose_map import CHANNELS
from tasks.models import codec, conditioning
from tasks.models.build import network
from tests.support.project import PROJECT

NAMES = presets.names(PROJECT)
TEXT = (PROJECT / "params.yaml").read_text()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "presets").symlink_to(PROJECT / "presets")
    return tmp_path


def test_the_default_is_the_first_and_changes_nothing(root: Path) -> None:
    assert NAMES == ["cpu-12min", "cpu-1h", "gpu-1h", "gpu-overnight"]
    presets.apply(root, "cpu-12min")
    assert (root / "params.yaml").read_text() == TEXT


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_preset_is_valid_keeps_comments_and_can_be_taken_back(name: str, root: Path) -> None:
    before = load(root / "params.yaml")
    presets.apply(root, name)
    text = (root / "params.yaml").read_text()
    after = load(root / "params.yaml")
    assert after != before and "# the picture model, conditioned on category and pose" in text
    presets.apply(root, "cpu-12min")
    assert load(root / "params.yaml") == before


def test_all_presets_have_the_same_keys() -> None:
    def keys(name: str) -> set[str]:
        values = presets.load(PROJECT, name).values
        return {key if not key.startswith("codec.adversarial") else "codec.adversarial" for key in values}

    assert all(keys(name) == keys(NAMES[0]) for name in NAMES)


def _sizes(params: Params) -> list[float]:
    """Millions of weights, tokens and GFLOP of the picture model, then millions and GFLOP of the codec, without numbers."""
    config, factor = params.pictures, params.codec.factor
    side = config.size // factor
    conds = conditioning.widths(config, 12, factor, params.codec.latents, padded=True)
    with torch.device("meta"):
        net = network(config, conds, (params.codec.latents, side, side))
        cond = {"vec:category": torch.zeros(1, 12), "map:pose": torch.zeros(1, CHANNELS * factor**2, side, side)}
        cond["map:padding"] = torch.zeros(1, 1, side, side)
        model = (
            count_parameters(net),
            flops(net, torch.zeros(1, params.codec.latents, side, side), torch.zeros(1), cond),
        )
        stage = codec.untrained(params.codec)
        assert isinstance(stage, Autoencoder)
        reconstruction = flops(
            lambda x, *_: stage.decode(stage.encode(x)), torch.zeros(1, 3, config.size, config.size), torch.zeros(1)
        )
    tokens = (side // config.patch) ** 2
    return [model[0] / 1e6, tokens, model[1] / 1e9, count_parameters(stage) / 1e6, reconstruction / 1e9]


@pytest.mark.parametrize("name", NAMES)
def test_models_have_the_sizes_that_the_preset_states(name: str, root: Path) -> None:
    presets.apply(root, name)
    about = presets.load(root, name).about
    said = re.search(
        r"Picture model ([\d.,]+) M weights, ([\d,]+) tokens, ([\d.]+) GFLOP; codec ([\d.]+) M, ([\d.]+) GFLOP", about
    )
    assert said is not None
    for text, value in zip(said.groups(), _sizes(load(root / "params.yaml")), strict=True):
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.05), text


def test_what_does_not_fit_is_refused_and_nothing_written(root: Path, tmp_path: Path) -> None:
    (root / "presets").unlink()
    (root / "presets").mkdir()
    (root / "presets/large.yaml").write_text("pictures: {size: 256}\n")
    (root / "presets/odd.yaml").write_text("pictures: {sides: 128}\n")
    for name, key in (("large", "pictures.size"), ("odd", "pictures.sides"), ("none", "choose one of large, odd")):
        with pytest.raises(UserError, match=key):
            presets.apply(root, name)
        assert parse((root / "params.yaml").read_text()) == parse(TEXT)


def test_a_wrong_key_is_told_although_the_preset_changes_nothing(root: Path) -> None:
    text = TEXT.replace("\nposes:", "\nunknown: 1\nposes:")
    (root / "params.yaml").write_text(text)
    with pytest.raises(UserError, match="unknown"):
        presets.apply(root, "cpu-12min")
    assert (root / "params.yaml").read_text() == text
