"""The video model: it begins as the picture model, is trained with stills beside clips, and resumes exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core import rng
from diffusion_core.conditioning import SEGMENT, Cond
from diffusion_core.schedules import sigma_level
from diffusion_core.training.trainer import Trainer
from tasks import paths
from tasks.common import checkpoint, files
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.models import modality, model_file
from tasks.train import stage, video
from tests.support import video_workspace
from tests.support.training import interrupted_at
from tests.support.workspaces import TINY_CODEC, write_awake, write_shards

LATENT = {"codec": TINY_CODEC, "pictures__patch": 1}


def _workspace(root: Path, **changes: Any) -> None:
    """Shards, clips, and a picture model of which every weight matters."""
    torch.set_num_threads(1)
    video_workspace.params(root, **changes)
    write_shards(root, train=8, val=4, test=2)
    video_workspace.write_clips(root)
    if "codec" in changes:
        params = load(root / "params.yaml")
        stage.run(params, root, "codec")
        stage.run(params, root, "pictures")
    else:
        write_awake(root, "pictures")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("video")
    _workspace(root)
    stage.run(load(root / "params.yaml"), root, paths.VIDEO)
    return root


def _untrained(root: Path, monkeypatch: pytest.MonkeyPatch) -> modality.Model:
    """The video model as the stage has it before its first step."""
    kept = {}

    def step(trainer: Trainer) -> object:
        kept.update({name: p.detach().clone() for name, p in trainer.denoiser.named_parameters()})
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        stage.run(load(root / "params.yaml"), root, paths.VIDEO)
    config = video.config_of(load(root / "params.yaml"), root)
    shape = modality.ClipShape.of(ShardDataset(root / "data/video", "train"))
    built = modality.build(paths.VIDEO, config, ["calm", "walk", "wild"], video.codec(root), 0.08, clip=shape)
    return model_file.with_weights(built, kept, torch.device("cpu"))


@pytest.mark.parametrize("changes", [{}, pytest.param(LATENT, marks=pytest.mark.slow)], ids=["pixels", "latents"])
def test_at_first_it_is_the_picture_model_frame_by_frame(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _workspace(tmp_path, **changes)
    clips = _untrained(tmp_path, monkeypatch)
    pictures = model_file.load(tmp_path / "artifacts/pictures", torch.device("cpu"))
    data = ShardDataset(tmp_path / "data/video", "val")
    names = ["calm", "wild", "calm", "wild"]
    poses = data.clips()
    cond = clips.conditions(names, poses)
    flat: Cond = {key: value.flatten(0, 1) for key, value in cond.items() if key.startswith("map:")}
    flat |= pictures.conditions([name for name in names for _ in range(video_workspace.FRAMES)])
    x = rng.normal(clips.shape, 0, torch.arange(len(poses)))
    level = sigma_level(torch.tensor(1.0))
    with torch.no_grad():
        frames = clips.denoiser(x, level, cond)
        single = pictures.denoiser(x.flatten(0, 1), level, flat)
    assert torch.equal(frames.flatten(0, 1), single) and frames.std() > 0


@pytest.mark.slow
def test_interrupted_training_ends_with_the_same_bits(trained: Path, tmp_path: Path) -> None:
    _workspace(tmp_path)
    with interrupted_at(48):
        stage.run(load(tmp_path / "params.yaml"), tmp_path, paths.VIDEO)
    stage.run(load(tmp_path / "params.yaml"), tmp_path, paths.VIDEO)
    one, other = (root / "artifacts/video/model.safetensors" for root in (trained, tmp_path))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_clips_that_are_read_when_they_are_needed_give_the_same_weights(trained: Path, tmp_path: Path) -> None:
    _workspace(tmp_path, video__model__memory_gb=0.0)
    stage.run(load(tmp_path / "params.yaml"), tmp_path, paths.VIDEO)
    one, other = (checkpoint.load(root / "artifacts/video/model.safetensors")[0] for root in (trained, tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_stills_are_trained_on_beside_clips_with_conditions_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _workspace(tmp_path)
    seen: list[tuple[torch.Tensor, Cond]] = []

    def step(trainer: Trainer) -> object:
        ids = torch.arange(4)
        x0, cond = trainer.data(ids)
        assert trainer.transform is not None
        seen.append(trainer.transform(x0, cond, 0, ids))
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(KeyboardInterrupt):
        stage.run(load(tmp_path / "params.yaml"), tmp_path, paths.VIDEO)
    ((x0, cond),) = seen
    frames = video_workspace.FRAMES
    assert x0.shape == (4, frames + 2, 3, 16, 16)
    assert cond[SEGMENT].tolist() == [[0] * frames + [1, 2]] * 4
    assert cond["map:pose"].shape == (4, frames + 2, 6, 16, 16)
    categories = cond["vec:category"].argmax(-1)  # calm, walk, wild: each has its own
    assert (categories[:, :frames] == categories[:, :1]).all() and set(categories[:, frames:].flatten().tolist()) == {
        0,
        2,
    }
    data = ShardDataset(tmp_path / "data/shards", "train")
    pictures = torch.from_numpy(data.pictures_uint8(16)).movedim(-1, 1) / 127.5 - 1
    both = torch.cat([pictures, pictures.flip(-1)])
    assert all((both - still).abs().flatten(1).amax(1).min() < 1e-5 for still in x0[:, frames:].flatten(0, 1))


@pytest.mark.slow
def test_it_learns_motion_and_knows_whom_it_was_trained_on(trained: Path) -> None:
    model = model_file.load(trained / "artifacts/video", torch.device("cpu"))
    assert model.shape == (4, 3, 16, 16) and {"calm", "wild", "walk"} <= set(model.categories)
    temporal = [
        p
        for name, p in model.denoiser.named_parameters()
        if name.endswith("attention.out.weight") and ".block." not in name
    ]
    assert temporal and all(p.abs().max() > 0 for p in temporal)
    about = files.read_json(trained / "artifacts/video/trained_on.json")
    assert set(about["keys"]) >= set(ShardDataset(trained / "data/shards", "train").keys)
    assert about["start"] == paths.model_sha256(trained, "pictures")


@pytest.mark.parametrize("changes", [{"pictures__net": "edm2"}, {"pictures__augment": 0.1}])
def test_a_picture_model_that_cannot_be_inflated_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    _workspace(tmp_path, **changes)
    with pytest.raises(UserError):
        stage.run(load(tmp_path / "params.yaml"), tmp_path, paths.VIDEO)


def test_video_needs_motion_and_frames_as_large_as_pictures(tmp_path: Path) -> None:
    for changes in ({"motion__run": []}, {"video__clips__size": 8}):
        with pytest.raises(UserError):
            video_workspace.params(tmp_path, **changes)
    assert np.isfinite(video_workspace.params(tmp_path).video.clips.rate)


def test_frames_share_noise_if_asked_to_and_single_frames_are_as_before(tmp_path: Path) -> None:
    params = video_workspace.params(tmp_path, video__model__shared_noise=0.75)
    write_awake(tmp_path, "pictures")
    config = video.config_of(params, tmp_path)
    model = modality.build(
        paths.VIDEO, config, ["calm"], video.codec(tmp_path), 0.08, clip=modality.ClipShape(4, 12.0)
    )  # fmt: skip
    noise = model.drawing(model.denoiser)["noise"](model.shape, 0, torch.arange(64)).movedim(1, 0).flatten(1)
    torch.testing.assert_close(torch.corrcoef(noise), 0.25 * torch.eye(4) + 0.75, atol=0.05, rtol=0)
    with pytest.raises(UserError):
        video.config_of(
            video_workspace.params(tmp_path / "gamma", video__model__shared_noise=0.75), _with_noise(tmp_path, "gamma")
        )


def _with_noise(root: Path, noise: str) -> Path:
    """A workspace whose picture model was trained with another noise."""
    folder = root / noise
    video_workspace.params(folder, pictures__noise=noise)
    write_awake(folder, "pictures")
    return folder
