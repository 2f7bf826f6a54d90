"""Motion on request: served, generated on demand, and registered beside the models of pictures."""

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
from tasks.common import files, foot_lock, motion
from tasks.common.errors import UserError
from tasks.common.skeleton import INDEX, LANDMARKS
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.extract import bvh
from tasks.registry import model_registry, rollback
from tasks.registry.tracking import Store
from tasks.sample import export, generate
from tasks.sample.motion_requests import Animator, MotionRequest
from tasks.sample.served_requests import Body, Studio
from tests.support import motion_workspace
from tests.support.workspaces import figure

CATEGORIES = ["walk", "wave"]
FRAMES, RATE = motion_workspace.CLIP


def _model(root: Path, images: int = 0, **changes: Any) -> Path:
    return motion_workspace.write_untrained(root, motion_workspace.params(root, **changes), CATEGORIES, images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def animator(folder: Path) -> Animator:
    return Animator(folder)


def test_a_motion_is_a_function_of_request_and_number(animator: Animator) -> None:
    request = MotionRequest(category="walk", steps=3, seed=5)
    several, alone = (animator.samples(request, ids).clips for ids in (torch.arange(3), torch.tensor([2])))
    assert several.shape == (3, FRAMES, 33, 3)
    np.testing.assert_allclose(several[2], alone[0], atol=1e-5)
    assert np.abs(several[0] - several[1]).max() > 0.01


def test_given_joints_of_the_first_frame_are_exact(animator: Animator) -> None:
    part = {"left_wrist": [0.5, -1.0, 0.1], "left_hip": [0.2, 0.0, 0.05]}
    clips = animator.samples(MotionRequest(pose=part, steps=3), torch.arange(2)).clips
    assert np.allclose(clips[:, 0, INDEX["left_wrist"]], part["left_wrist"], atol=1e-5)
    assert np.allclose(clips[:, 0, INDEX["left_hip"]], part["left_hip"], atol=1e-5)
    assert np.allclose(clips[:, 0, INDEX["right_hip"]], -np.array(part["left_hip"]), atol=1e-5)
    assert np.abs(clips[0, 1] - clips[1, 1]).max() > 0.01
    whole = figure(np.random.default_rng(9), 0)
    pose = {name: place.tolist() for name, place in zip(LANDMARKS, whole.astype(float), strict=True)}
    clips = animator.samples(MotionRequest(pose=pose, steps=3), torch.arange(1)).clips
    assert np.allclose(clips[0, 0], motion.canonical(whole[None, None])[0, 0], atol=1e-5)


@pytest.mark.parametrize(("seconds", "frames"), [(0.5, 3), (2.5, 15)])
def test_a_motion_has_the_length_that_was_asked_for(animator: Animator, seconds: float, frames: int) -> None:
    clips = animator.samples(MotionRequest(seconds=seconds, steps=3), torch.arange(1)).clips
    assert clips.shape == (1, frames, 33, 3) and np.isfinite(clips).all()
    short = animator.samples(MotionRequest(steps=3), torch.arange(1)).clips
    shared = min(frames, FRAMES)
    assert np.allclose(clips[:, :shared], short[:, :shared], atol=1e-5)  # a longer one begins in the same way


def test_feet_are_locked_if_asked_for(animator: Animator) -> None:
    request = MotionRequest(category="walk", steps=3)
    free, fixed = (
        animator.samples(request.model_copy(update={"lock_feet": locked}), torch.arange(1)) for locked in (False, True)
    )
    assert np.array_equal(foot_lock.locked(free.clips, RATE), fixed.clips)
    assert not np.array_equal(free.clips, fixed.clips)


def test_what_cannot_be_asked_for_is_refused(animator: Animator, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no category 'swim'"):
        animator.samples(MotionRequest(category="swim"), torch.arange(1))
    without = Animator(_model(tmp_path, motion__model__conditions=["category"]))
    with pytest.raises(ValueError, match="velocity"):
        without.samples(MotionRequest(velocity=[0.0, 0.0, -1.0]), torch.arange(1))
    for wrong in ({"velocity": [1.0]}, {"seconds": 0.0}, {"pose": {"tail": [0.0, 0.0, 0.0]}}, {"count": 65}):
        with pytest.raises(ValueError):
            MotionRequest.model_validate(wrong)


def test_the_served_model_answers_with_motion(folder: Path) -> None:
    studio = Studio({paths.MOTION: folder})
    answer = studio.answer(Body(kind="motion", category="wave", count=2, steps=3, velocity=[0.0, 0.0, -1.0]))
    assert len(answer) == 2
    one = answer[0]
    assert np.shape(one["landmarks"]) == (FRAMES, 33, 3) and one["rate"] == RATE
    recorded = bvh.read(io.BytesIO(one["bvh"].encode()))
    assert len(recorded.values) == FRAMES and recorded.frame_time == pytest.approx(1 / RATE)
    with Image.open(io.BytesIO(base64.b64decode(one["webp"]))) as picture:
        assert getattr(picture, "n_frames", 1) == FRAMES
    for body in (Body(), Body(kind="dream"), Body(kind="motion", start={"sigma": -1.0})):
        with pytest.raises(ValueError):
            studio.answer(body)


def test_a_registered_motion_model_is_generated_from_exported_and_rolled_back(tmp_path: Path) -> None:
    wish = {"generate__kind": "motion", "generate__count": 3, "generate__seconds": 2.0}
    folder = _model(tmp_path, **wish)
    params = load(tmp_path / "params.yaml")
    store = Store(params.tracking, tmp_path)
    with pytest.raises(UserError, match="train-motion"):
        generate.run(params, tmp_path)
    pictures = {name: store.register(name, folder, paths.sha256(folder), "") for name in paths.MODELS}
    model_registry.make_champions(store, pictures)
    number = store.register(paths.MOTION, folder, paths.sha256(folder), "a card")
    model_registry.make_champions(store, {paths.MOTION: number}, (paths.MOTION,))

    def champions() -> dict[str, str | None]:
        aliases = {name: model_registry.version(store, name, "champion") for name in (*paths.MODELS, paths.MOTION)}
        return {name: None if found is None else str(found.version) for name, found in aliases.items()}

    assert champions() == {**pictures, paths.MOTION: number}
    generate.run(params, tmp_path)
    made = ShardDataset(tmp_path / "generated", "generated")
    made.verify()
    assert made.clips().shape == (3, 12, 33, 3)
    assert [meta["category"] for meta in made.metas()] == ["walk", "wave", "walk"]
    for suffix in (".bvh", ".csv", ".webp", ".mp4"):
        assert (tmp_path / "generated/motion" / f"{made.keys[0]}{suffix}").is_file()
    assert files.read_json(tmp_path / "generated/generated.json")["rate"] == RATE

    with pytest.raises(UserError, match="no previous"):
        rollback.run(params, tmp_path, paths.MOTION)
    later = store.register(paths.MOTION, _model(tmp_path, images=1, **wish), paths.sha256(folder), "a card")
    model_registry.make_champions(store, {paths.MOTION: later}, (paths.MOTION,))
    rollback.run(params, tmp_path, paths.MOTION)
    assert champions() == {**pictures, paths.MOTION: number}


def test_motion_alone_can_be_exported(tmp_path: Path) -> None:
    folder = _model(tmp_path)
    params = load(tmp_path / "params.yaml")
    store = Store(params.tracking, tmp_path)
    number = store.register(paths.MOTION, folder, paths.sha256(folder), "a card")
    model_registry.make_champions(store, {paths.MOTION: number}, (paths.MOTION,))
    export.run(params, tmp_path)
    exported = tmp_path / "exports/champion"
    assert [path.name for path in (exported / "huggingface").iterdir()] == [paths.MOTION]
    readme = (exported / "huggingface/motion/README.md").read_text()
    names: dict[str, Any] = {}
    exec(readme.split("```")[1].removeprefix("python").replace('Path(".")', f"Path({str(folder)!r})"), names)
    assert names["clips"].shape == (4, FRAMES, 33, 3)
