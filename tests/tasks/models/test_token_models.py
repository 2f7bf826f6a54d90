"""Picture models of a codec's codes: trained, resumed, measured, stored and sampled like all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core.codecs import Tokens
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params, load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import membership_inference
from tasks.models import model_file
from tasks.sample import requests
from tasks.sample import stage as sample
from tasks.train import stage
from tests.support.workspaces import write_params, write_shards

CODEC = {"kind": "vq", "factor": 4, "latents": 8, "widths": [8, 16], "codes": 16, "images": 64, "checkpoint_images": 64,
         "copies": 0}  # fmt: skip


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what training sets


def _workspace(root: Path, recipe: str, **changes: Any) -> Params:
    write_params(root, **{
        "codec": CODEC, "pictures__recipe": recipe, "pictures__patch": 1, "sample__pictures__sampler": "unmask",
        "sample__pictures__count": 4, "sample__pictures__guidance": 2.0, "sample__train_conditions": 0,
        "pictures__images": 128, "pictures__checkpoint_images": 64, "pictures__body_weight": 2.0, **changes,
    })  # fmt: skip
    write_shards(root)
    return load(root / paths.PARAMS)


@pytest.mark.parametrize(
    ("recipe", "net"),
    [
        ("masked", "patch"),
        pytest.param("absorbing", "unet", marks=pytest.mark.slow),
        pytest.param("uniform", "patch", marks=pytest.mark.slow),
    ],
)
def test_a_model_of_codes_goes_through_the_stages(recipe: str, net: str, tmp_path: Path) -> None:
    params = _workspace(tmp_path, recipe, pictures__net=net, pictures__width=32)
    stage.run(params, tmp_path, "codec")
    stage.run(params, tmp_path, "pictures")
    stored = paths.model_folder(tmp_path, "pictures") / paths.MODEL_FILE
    whole = stored.read_bytes()
    for path in (tmp_path / paths.TRAINING / "pictures").glob("*/checkpoint-*"):
        if int(path.stem.split("-")[1]) > 64:
            path.unlink()
    stored.unlink()
    stage.run(params, tmp_path, "pictures")
    assert stored.read_bytes() == whole
    model = model_file.load(stored.parent, torch.device("cpu"))
    assert isinstance(model.codec, Tokens) and model.shape == (16,)
    params_poses = _workspace(tmp_path, recipe, pictures__net=net, pictures__width=32, poses__images=32)
    stage.run(params_poses, tmp_path, "poses")
    sample.run(params_poses, tmp_path, "poses")
    sample.run(params_poses, tmp_path, "pictures")
    drawn = ShardDataset(paths.sample_folder(tmp_path, "pictures"), "samples").pictures_uint8(16)
    assert drawn.shape == (4, 16, 16, 3) and len(np.unique(drawn.reshape(4, -1), axis=0)) > 1
    artist = requests.Artist(*(paths.model_folder(tmp_path, name) for name in paths.MODELS))
    answered = artist.samples(requests.Request(sampler="unmask", steps=2), torch.arange(2))
    assert answered.poses.shape == (2, 33, 3) and answered.pictures.shape == (2, 16, 16, 3)
    gaps = membership_inference.loss_gaps(tmp_path, "pictures", 16)
    assert all(0 < gap.train < 2 * np.log(16) for gap in gaps), "cross-entropies of about log 16"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"codec": {"kind": "pca"}}, "codec.kind vq"),
        ({"sample__pictures__sampler": "ddim"}, "sample.pictures"),
        ({"pictures__weight": "p2"}, "weight must be null"),
        ({"pictures__self_condition": True}, "self_condition"),
        ({"pictures__levels": "importance"}, "levels importance"),
        ({"pictures__recipe": "edm"}, "needs a recipe of tokens"),
        ({"poses__recipe": "masked"}, "poses"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        _workspace(tmp_path, "masked", **changes)
