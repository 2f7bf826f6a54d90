"""Clips of pictures by a model: for held-out and for generated motion, in one format, judged, and shown on a page."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import paths
from tasks.common import files, motion
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.dataset import frames
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import video_quality
from tasks.metrics import video as video_metrics
from tasks.models import modality
from tasks.registry import model_registry, promote_video
from tasks.registry.tracking import Store
from tasks.report import video_page
from tasks.sample import video as sample_video
from tasks.train import stage
from tests.support import video_workspace
from tests.support.project import PROJECT
from tests.support.workspaces import write_awake, write_shards


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a video model of one training step, and its samples."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("video")
    params = video_workspace.params(root, video__model__images=16, video__model__checkpoint_images=16)
    write_shards(root, train=8, val=4, test=2)
    video_workspace.write_clips(root)
    video_workspace.write_motion(root)
    write_awake(root, "pictures")
    stage.run(params, root, paths.VIDEO)
    sample_video.run(params, root)
    return root


def test_samples_have_the_format_of_the_clips(workspace: Path) -> None:
    folder, held_out = workspace / "samples/video", ShardDataset(workspace / "data/video", "val", "test")
    for split, count in (("samples", 4), ("motions", 2), ("apart", 2)):
        data = ShardDataset(folder, split)
        assert frames.read(data).shape == (count, 4, 16, 16, 3) and data.clips().shape == (count, 4, 33, 3)
    for clip, meta in zip(
        ShardDataset(folder, "samples").clips(), ShardDataset(folder, "samples").metas(), strict=True
    ):
        row = held_out.keys.index(meta["condition"])
        assert np.array_equal(clip, held_out.clips()[row]) and meta["category"] == held_out.meta(row)["category"]
    assert (folder / "clips.webp").stat().st_size and (folder / "clips.mp4").stat().st_size


def test_the_same_noise_with_frames_apart_gives_other_clips(workspace: Path) -> None:
    together, apart = (
        frames.read(ShardDataset(workspace / "samples/video", split))[:2] for split in ("samples", "apart")
    )
    assert not np.array_equal(together, apart)  # training moved the temporal layers away from the identity


def test_a_sample_depends_on_neither_the_batch_nor_the_count(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    params = video_workspace.params(tmp_path, video__sample__batch=3, video__sample__count=3)
    sample_video.run(params, tmp_path)
    one, other = (frames.read(ShardDataset(root / "samples/video", "samples")) for root in (workspace, tmp_path))
    assert np.abs(one[:3].astype(int) - other).max() <= 1  # rounding


def test_windows_of_generated_motion_are_turned_and_begin_at_0(workspace: Path) -> None:
    choice = load(workspace / "params.yaml").video.sample
    generated = ShardDataset(workspace / "samples/motion", "samples")
    asked = sample_video.windows(generated, modality.ClipShape(4, 12.0), choice)
    assert np.allclose(motion.middle_of_hips(asked.clip[:, 0]), 0, atol=1e-6)
    for clip, key in zip(asked.clip, asked.key, strict=True):
        whole = generated.clips()[generated.keys.index(key)]
        lengths = np.linalg.norm(np.diff(clip, axis=0), axis=-1)
        assert lengths.mean() == pytest.approx(np.linalg.norm(np.diff(whole, axis=0), axis=-1).mean(), rel=0.1)
    assert len({round(float(yaw), 3) for yaw in motion.yaw(asked.clip[:, 0])}) == len(asked.clip)
    with pytest.raises(UserError):
        sample_video.windows(generated, modality.ClipShape(16, 12.0), choice)


def test_flicker_is_0_for_steady_change_and_large_for_frames_that_do_not_belong_together() -> None:
    steady = np.arange(0, 80, 10, dtype=np.uint8)[None, :, None, None, None] * np.ones((1, 1, 4, 4, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, steady.shape, np.uint8)
    assert video_metrics.flicker(steady) == pytest.approx(0, abs=1e-6)
    assert video_metrics.change(steady) == pytest.approx(10 / 255)
    assert video_metrics.flicker(noise) > 0.3


def test_a_model_is_promoted_only_if_it_is_clean_and_better_than_chance_and_than_frames_apart() -> None:
    good = {
        "samples.joint_error": 0.3,
        "samples.joint_error_chance": 0.9,
        "samples.flicker": 0.01,
        "apart.flicker": 0.1,
    }
    assert promote_video.objections("CLEAN", good) == []
    for verdict, change in (
        ("COPIES", {}),
        ("CLEAN", {"samples.joint_error": 0.9}),
        ("CLEAN", {"samples.flicker": 0.1}),
    ):
        assert len(promote_video.objections(verdict, {**good, **change})) == 1
    assert len(promote_video.objections("CLEAN", {"samples.flicker": 0.01})) == 1  # nobody was found


@pytest.mark.slow
def test_the_page_shows_what_was_measured(workspace: Path) -> None:
    model = workspace / "models/pose_landmarker_full.task"
    model.parent.mkdir(exist_ok=True)
    shutil.copyfile(PROJECT / "models/pose_landmarker_full.task", model)
    params = load(workspace / "params.yaml")
    video_quality.run(params, workspace)
    quality = files.read_json(workspace / "reports/video_quality/video_quality.json")
    for name in ("samples", "motions", "apart", "heldout"):
        assert {f"{name}.found", f"{name}.flicker"} <= quality["metrics"].keys()
    assert quality["verdict"] == "TOO-FEW" and "frechet_video_distance" in quality["absent"]
    promote_video.run(params, workspace)
    outcome = files.read_json(workspace / "reports/promote_video/promote.json")
    assert not outcome["promote"] and outcome["reasons"]
    assert model_registry.version(Store(params.tracking, workspace), paths.VIDEO, model_registry.CHALLENGER)
    video_page.run(params, workspace)
    page = (workspace / "reports/video.html").read_text()
    assert page.count("data:image/webp") == 4 and "TOO-FEW" in page and "http" not in page.replace("http-equiv", "")
