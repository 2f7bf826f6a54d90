"""ControlNet of a tiny Stable Diffusion: the base at the start, diffusers' pipeline, resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_core import rng

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import diffusers

from tasks.adapt import stage
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.foreign import control, draw, folder, model
from tests.support import tiny_pipelines
from tests.support.training import interrupted_at
from tests.support.workspaces import write_params, write_shards

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
HOW = SamplingChoices(sampler="ddim", steps=4, guidance=2.0)
SECTION = {
    "images": 48, "checkpoint_images": 16, "learning_rate": 1e-2, "ema_halflife_images": 8, "mirror": True,
    "caption_dropout": 0.2, "size": 64, "certificate": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stored(tmp_path_factory.mktemp("published") / "sd", "sd")


def workspace(root: Path, published: Path, **changes: Any) -> Path:
    source = {"source": str(published), "sha256": folder.digest(published)}
    write_params(root, base=source, adapt={"controlnet": {**SECTION, **changes}})
    write_shards(root, train=12, val=6, test=2)
    return root


def train(root: Path) -> Path:
    torch.set_num_threads(1)
    stage.run(load(root / "params.yaml"), root, "controlnet")
    return root / "artifacts/controlnet"


@pytest.fixture(scope="module")
def trained(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(workspace(tmp_path_factory.mktemp("workspace"), published, certificate={"samples": 50, "steps": 1}))


def poses(root: Path, count: int = 2) -> Tensor:
    return control.pictures(ShardDataset(root / "data/shards", "val").poses()[:count], 64, 0.08)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_an_untrained_branch_is_the_base_bit_for_bit(kind: str, tmp_path: Path) -> None:
    base = model.load(tiny_pipelines.stored(tmp_path / kind, kind), None, CPU)
    cond, ids = base.conditions(["a cat", "dogs"]), torch.arange(2)
    plain = base.latents(cond, HOW, 0, ids, 64)
    write_shards(tmp_path, train=2, val=2, test=2)
    made = control.controlled(base)
    cond[control.POSE] = poses(tmp_path)
    assert torch.equal(made.latents(cond, HOW, 0, ids, 64), plain)
    for parameter in control.branch_of(made).parameters():
        parameter.data += 0.05
    changed = made.latents(cond, HOW, 0, ids, 64)
    assert (changed - plain).abs().max() > 1e-3
    withheld = {**cond, f"keep:{control.POSE}": torch.tensor([True, False])}
    partly = made.latents(withheld, HOW, 0, ids, 64)
    assert torch.allclose(partly[0], changed[0], atol=1e-5) and torch.allclose(partly[1], plain[1], atol=1e-5)


def test_the_pipeline_of_diffusers_draws_the_same(trained: Path, published: Path) -> None:
    base = model.load(published, None, CPU)
    ours = draw.adapted(trained, base)
    cond, wanted = ours.conditions(["a cat"]), poses(trained.parents[1], 1)
    drawn = ours.latents({**cond, control.POSE: wanted}, HOW, 3, torch.arange(1), 64)
    assert (drawn - base.latents(cond, HOW, 3, torch.arange(1), 64)).abs().max() > 1e-3
    branch = diffusers.ControlNetModel.from_pretrained(trained)
    pipeline = diffusers.StableDiffusionControlNetPipeline.from_pretrained(
        published, controlnet=branch, local_files_only=True
    )
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    noise = rng.normal(ours.shape(64), rng.fold(3, 0), torch.arange(1))
    theirs = pipeline(
        "a cat", image=wanted, height=64, width=64, num_inference_steps=4, guidance_scale=2.0, latents=noise,
        output_type="latent",
    ).images  # fmt: skip
    assert (drawn - theirs).abs().max() < 1e-4
    none = draw.adapted(trained, base, 0.0).latents({**cond, control.POSE: wanted}, HOW, 3, torch.arange(1), 64)
    assert torch.equal(none, base.latents(cond, HOW, 3, torch.arange(1), 64))


def test_it_is_certified_and_killed_and_resumed_it_has_the_same_bits(
    trained: Path, published: Path, tmp_path: Path
) -> None:
    assert json.loads((trained / "certificate.json").read_text())["folders"]["heldout"]["pictures"] == 6
    assert len(list((trained / "poses").glob("*.png"))) == 6
    root = workspace(tmp_path, published)
    with interrupted_at(16):
        train(root)
    again = train(root)
    for name in ("model.safetensors", control.WEIGHTS, "training.json"):
        assert (again / name).read_bytes() == (trained / name).read_bytes(), name


def test_pictures_of_poses_are_read_back_and_other_models_have_no_branch(tmp_path: Path) -> None:
    write_shards(tmp_path, train=2, val=2, test=2)
    drawn = poses(tmp_path)
    (tmp_path / "poses").mkdir()
    for i, picture in enumerate(drawn):
        values = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(values).save(tmp_path / f"poses/{i}.png")
    assert (draw.read_poses(tmp_path / "poses", 64) - drawn).abs().max() < 0.01
    assert not np.array_equal(drawn[0], drawn[1])
    Image.new("RGB", (64, 64)).save(tmp_path / "script.png", "EPS")  # Pillow would start Ghostscript for it
    with pytest.raises(UserError):
        draw.read_poses(tmp_path, 64)
    with pytest.raises(UserError):
        draw.read_poses(tmp_path / "nothing", 64)
    with pytest.raises(UserError):
        control.controlled(model.load(tiny_pipelines.stored(tmp_path / "sd3", "sd3"), None, CPU))
