"""Clips of pictures on request: served, generated on demand, and exported."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tasks import paths
from tasks.common import files, motion
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.dataset import frames
from tasks.dataset.shards import ShardDataset
from tasks.registry import model_registry
from tasks.registry.tracking import Store
from tasks.sample import export, generate
from tasks.sample.motion_requests import Animator
from tasks.sample.served_requests import Body, Studio
from tasks.sample.video_requests import Filmmaker, VideoRequest
from tests.support import motion_workspace, video_workspace
from tests.support.workspaces import write_awake, write_shards

CATEGORIES = ["walk", "wave"]
FRAMES, RATE, SIZE = video_workspace.FRAMES, video_workspace.RATE, video_workspace.SIZE


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with models of motion and video that are not trained. The latter begins as a picture model."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("video_requests")
    params = video_workspace.params(
        root, generate__kind="video", generate__count=3, **{f"motion__model__{k}": v for k, v in motion_workspace.TINY.items()}
    )  # fmt: skip
    write_shards(root)
    write_awake(root, "pictures")
    motion_workspace.write_untrained(root, params, CATEGORIES)
    video_workspace.write_untrained(root, params, CATEGORIES)
    return root


@pytest.fixture(scope="module")
def filmmaker(workspace: Path) -> Filmmaker:
    return Filmmaker(paths.model_folder(workspace, paths.VIDEO), Animator(paths.model_folder(workspace, paths.MOTION)))


def test_a_clip_is_a_function_of_request_and_number(filmmaker: Filmmaker) -> None:
    request = VideoRequest(category="walk", steps=2, seed=5)
    several, alone = (filmmaker.samples(request, ids) for ids in (torch.arange(3), torch.tensor([2])))
    assert several.pictures.shape == (3, FRAMES, SIZE, SIZE, 3) and several.clips.shape == (3, FRAMES, 33, 3)
    np.testing.assert_allclose(several.clips[2], alone.clips[0], atol=1e-5)
    assert np.abs(several.pictures[2].astype(int) - alone.pictures[0]).max() <= 1  # rounding
    assert np.abs(several.clips[0] - several.clips[1]).max() > 0.01


def test_the_motion_is_that_of_the_motion_model_at_the_rate_of_the_clip_and_turned(filmmaker: Filmmaker) -> None:
    ids = torch.arange(2)
    straight = filmmaker.samples(VideoRequest(category="wave", steps=2), ids).clips
    asked = filmmaker._motion(VideoRequest(category="wave", steps=2), (FRAMES - 1) / RATE)
    whole = filmmaker.animator.samples(asked, ids)
    placed = whole.clips - motion.middle_of_hips(whole.clips[:, 0])[:, None, None]
    assert np.allclose(straight[:, ::2], placed[:, :2], atol=1e-5)  # motion has 6 frames a second, clips have 12
    left = filmmaker.samples(VideoRequest(category="wave", steps=2, turn=90.0), ids).clips
    # Who turns to their left by 90 degrees has in front (-z) what was at their right (-x).
    assert np.allclose(left[..., 2], straight[..., 0], atol=1e-5) and np.allclose(
        left[..., 0], -straight[..., 2], atol=1e-5
    )


def test_the_served_model_answers_with_clips(workspace: Path) -> None:
    folders = {model: paths.model_folder(workspace, model) for model in (paths.MOTION, paths.VIDEO)}
    answer = Studio(folders).answer(Body(kind="video", category="wave", count=2, steps=2, guidance=1.0))
    assert len(answer) == 2 and np.shape(answer[0]["landmarks"]) == (FRAMES, 33, 3) and answer[0]["rate"] == RATE
    with Image.open(io.BytesIO(base64.b64decode(answer[0]["webp"]))) as picture:
        assert getattr(picture, "n_frames", 1) == FRAMES
    with pytest.raises(ValueError):
        Studio({paths.VIDEO: folders[paths.VIDEO]}).answer(Body(kind="video"))
    for wrong in ({"category": "swim"}, {"turn": 200.0}, {"pose": {"tail": [0.0, 0.0, 0.0]}}):
        with pytest.raises(ValueError):
            Studio(folders).answer(Body(kind="video", **wrong))


@pytest.mark.slow
def test_registered_models_are_generated_from_and_exported(workspace: Path) -> None:
    params = load(workspace / "params.yaml")
    store = Store(params.tracking, workspace)
    with pytest.raises(UserError, match="train-motion"):
        generate.run(params, workspace)
    for model in (paths.MOTION, paths.VIDEO):
        folder = paths.model_folder(workspace, model)
        number = store.register(model, folder, paths.sha256(folder), "a card")
        model_registry.make_champions(store, {model: number}, (model,))
    generate.run(params, workspace)
    made = ShardDataset(workspace / "generated", "generated")
    made.verify()
    assert frames.read(made).shape == (3, FRAMES, SIZE, SIZE, 3) and made.clips().shape == (3, FRAMES, 33, 3)
    assert np.allclose(motion.middle_of_hips(made.clips()[:, 0]), 0, atol=1e-5)
    assert [meta["category"] for meta in made.metas()] == ["walk", "wave", "walk"]
    for suffix in (".webp", ".mp4"):
        assert (workspace / "generated/video" / f"{made.keys[0]}{suffix}").is_file()
    assert files.read_json(workspace / "generated/generated.json")["kind"] == "video"
    export.run(params, workspace)
    exported = workspace / "exports/champion/huggingface"
    assert sorted(path.name for path in exported.iterdir()) == [paths.MOTION, paths.VIDEO]
    names: dict[str, Any] = {}
    code = (exported / "video/README.md").read_text().split("```")[1].removeprefix("python")
    exec(code.replace('Path(".")', f"Path({str(exported / 'video')!r})").replace("steps=18", "steps=2"), names)
    assert names["clips"].shape == (4, FRAMES, SIZE, SIZE, 3)
