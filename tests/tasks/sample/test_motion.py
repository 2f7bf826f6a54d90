"""The motion model end to end on a tiny scale: trained, resumed, sampled, controlled, judged, registered, shown, exported."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from tasks import paths
from tasks.common import files, motion
from tasks.common.errors import UserError
from tasks.common.skeleton import INDEX
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset import clips
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import motion_quality
from tasks.extract import bvh, mocap
from tasks.models import model_file, motion_control
from tasks.models.motion_control import Plan
from tasks.registry import promote_motion
from tasks.report import motion_page
from tasks.sample import export_motion, motion_skeleton
from tasks.sample import motion as sample_motion
from tasks.sample.motion import LEGS
from tasks.synthetic import animate
from tasks.train import stage as train
from tests.support import motion_workspace
from tests.support.training import interrupted_at
from tests.support.workspaces import write_shards

STILLS = 2


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a trained motion model and its samples."""
    root = tmp_path_factory.mktemp("motion")
    _trained(root)
    sample_motion.run(load(root / "params.yaml"), root)
    return root


def _data(root: Path) -> None:
    params = motion_workspace.params(root, motion__model__stills=STILLS)
    animate.run(params, root)
    motion_workspace.write(root, motion_workspace.tracked("bend/a.mp4", np.arange(0, 4, 0.25)))
    clips.run(params, root)
    write_shards(root, train=20, val=4, test=2)


def _trained(root: Path) -> None:
    _data(root)
    torch.set_num_threads(1)
    train.run(load(root / "params.yaml"), root, paths.MOTION)


def test_interrupted_training_ends_with_the_same_bits(workspace: Path, tmp_path: Path) -> None:
    _data(tmp_path)
    params = load(tmp_path / "params.yaml")
    with interrupted_at(48):
        train.run(params, tmp_path, paths.MOTION)
    train.run(params, tmp_path, paths.MOTION)
    one, other = (root / "artifacts/motion/model.safetensors" for root in (workspace, tmp_path))
    assert one.read_bytes() == other.read_bytes()


def test_the_model_knows_categories_of_stills_and_who_it_was_trained_on(workspace: Path) -> None:
    model = model_file.load(workspace / "artifacts/motion", torch.device("cpu"))
    assert {"calm", "wild", "walk"} <= set(model.categories) and model.shape == (8, 33, 3)
    assert model.clip == (8, 6.0)
    keys = set(files.read_json(workspace / "artifacts/motion/trained_on.json")["keys"])
    assert keys >= set(ShardDataset(workspace / "data/shards", "train").keys)
    train_clips = ShardDataset(workspace / "data/clips", "train")
    assert keys >= {row for meta in train_clips.metas() for row in meta["rows"]}


def test_what_is_given_is_exact_in_the_result(workspace: Path) -> None:
    folder, held_out = workspace / "samples/motion", ShardDataset(workspace / "data/clips", "val", "test")
    for split, frames in (("continued", range(4)), ("connected", (0, 7))):
        drawn = ShardDataset(folder, split)
        for clip, meta in zip(drawn.clips(), drawn.metas(), strict=True):
            real = held_out.take([held_out.keys.index(meta["given"])]).clips()[0]
            assert np.allclose(clip[list(frames)], real[list(frames)], atol=1e-4)
            assert not np.allclose(clip[5], real[5], atol=1e-2)
    drawn = ShardDataset(folder, "held")
    for clip, meta in zip(drawn.clips(), drawn.metas(), strict=True):
        real = held_out.take([held_out.keys.index(meta["given"])]).clips()[0]
        assert np.allclose(clip[:, LEGS], real[:, LEGS], atol=1e-4)
        assert not np.allclose(clip[:, INDEX["left_wrist"]], real[:, INDEX["left_wrist"]], atol=1e-2)


def test_a_loop_closes_and_long_motion_has_no_seam_in_the_frames_that_windows_share(workspace: Path) -> None:
    loops = motion.in_place(ShardDataset(workspace / "samples/motion", "looped").clips())
    assert np.allclose(loops[:, -1], loops[:, 0], atol=2e-3)
    assert np.allclose(loops[:, -1] - loops[:, -2], loops[:, 1] - loops[:, 0], atol=4e-3)
    long = ShardDataset(workspace / "samples/motion", "long").clips()
    assert long.shape[1] == 8 + 2 * (8 - 3)


def test_long_motion_goes_on_where_the_window_before_it_ended(workspace: Path) -> None:
    model = model_file.load(workspace / "artifacts/motion", torch.device("cpu"))
    beginning = ShardDataset(workspace / "data/clips", "train").clips()[:2]
    ids, plan = torch.arange(2), Plan(SamplingChoices(steps=3))
    one = motion_control.long(model, 2, 3, lambda k: {}, ids, plan, beginning=beginning)
    assert np.allclose(one[:, :8], beginning, atol=1e-5)
    # The same beginning elsewhere and turned gives the same motion there.
    angle = np.array([0.4, -1.1])
    moved = motion.turned(beginning, angle) + np.float32([1.0, 0.0, -2.0])
    other = motion_control.long(model, 2, 3, lambda k: {}, ids, plan, beginning=moved)
    assert np.allclose(other, motion.turned(one, angle) + np.array([1.0, 0.0, -2.0]), atol=1e-3)


def test_the_samples_are_judged_registered_and_shown(workspace: Path) -> None:
    params = load(workspace / "params.yaml")
    motion_quality.run(params, workspace)
    quality = files.read_json(workspace / "reports/motion_quality/motion_quality.json")
    assert quality["verdict"] in ("CLEAN", "COPIES", "TOO-FEW", "SPLIT-UNRELIABLE")
    assert {"foot_skating_heldout", "jitter", "bone_change", "seam"} <= set(quality["metrics"])
    assert "frechet_motion_distance" in quality["absent"]  # 30 samples are too few
    promote_motion.run(params, workspace)
    assert not files.read_json(workspace / "reports/promote_motion/promote.json")["promote"]
    motion_page.run(params, workspace)
    page = (workspace / "reports/motion.html").read_text()
    assert "data:image/webp;base64" in page and "animation" in page
    before = page
    motion_page.run(params, workspace)
    assert (workspace / "reports/motion.html").read_text() == before


def test_exported_files_open_elsewhere(workspace: Path) -> None:
    import av
    from PIL import Image

    params = load(workspace / "params.yaml")
    export_motion.run(params, workspace, "samples", "2")
    folder = workspace / "exports/motion"
    about = files.read_json(folder / "motion.json")
    assert len(about) == 2
    for key in about:
        with (folder / f"{key}.bvh").open("rb") as file:
            recorded = bvh.read(file)
        assert len(recorded.values) == 8 and recorded.frame_time == pytest.approx(1 / 6)
        mocap.landmarks(recorded, np.arange(8))
        with av.open(str(folder / f"{key}.mp4")) as video:
            assert len(list(video.decode(video=0))) == 8
        with Image.open(folder / f"{key}.webp") as picture:
            assert getattr(picture, "n_frames", 1) == 8 and picture.info["loop"] == 0
    with pytest.raises(UserError):
        export_motion.run(params, workspace, "samples", "many")


def test_bvh_round_trip_is_exact() -> None:
    clip = animate.animated(1, 1, 1.0, 24.0).joints  # a run: knees and elbows bend by more than 90 degrees
    clip = motion.canonical((clip / motion.scale(clip))[None].astype(np.float64))[0]
    fitted = motion_skeleton.fit(clip)
    assert fitted.error < 0.005
    recorded = bvh.read(io.BytesIO(motion_skeleton.bvh(fitted, 24.0).encode()))
    place, turn = bvh.joint_frames(recorded, np.arange(len(clip)))
    names = [joint.name for joint in recorded.joints]
    order = [names.index(name) for name in motion_skeleton.NAMES]
    assert np.abs(place[:, order] / 100 - motion_skeleton.positions(fitted)).max() < 1e-5  # metres
    own = np.zeros_like(fitted.local)
    for j, above in enumerate(motion_skeleton.JOINTS.values()):
        i = None if above is None else motion_skeleton.NAMES.index(above)
        own[:, j] = fitted.local[:, j] if i is None else own[:, i] @ fitted.local[:, j]
    cosine = (np.einsum("fjab,fjab->fj", turn[:, order], own) - 1) / 2
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 0.01
    assert np.abs(np.diff(fitted.angles(), axis=0)).max() < 90  # no flips between frames


def test_joint_angles_mean_what_the_documentation_says() -> None:
    """A T pose has angles of 0 in trunk, arms and legs; a raised leg and a bent knee turn about x."""
    table = motion_skeleton.table(motion_skeleton.fit(np.stack([_t_pose(0.0, 0.0), _t_pose(50.0, 70.0)])), 1.0)
    header, first, second = (line.split(",") for line in table.strip().split("\n"))
    rest, bent = (dict(zip(header, map(float, row), strict=True)) for row in (first, second))
    for joint in ("Hips", "Spine", "Spine1", "LeftUpLeg", "LeftLeg", "LeftArm", "LeftForeArm", "RightArm"):
        assert [rest[f"{joint}_{axis}_deg"] for axis in "xyz"] == pytest.approx([0, 0, 0], abs=0.5), joint
    assert bent["LeftUpLeg_x_deg"] == pytest.approx(-50, abs=0.5)
    assert bent["LeftLeg_x_deg"] == pytest.approx(70, abs=0.5)
    assert (rest["time_s"], bent["time_s"]) == (0, 1)


def _t_pose(flex: float, knee: float) -> np.ndarray:
    """Landmarks of a T pose in torso lengths with the left thigh lifted forward and the knee bent, in degrees."""
    pose = np.zeros((33, 3))
    pose[:11] = [0, -1.5, -0.05]
    pose[0], pose[7], pose[8] = [0, -1.45, -0.2], [0.15, -1.5, 0], [-0.15, -1.5, 0]
    for sign, left in ((1, 0), (-1, 1)):
        for joint, x in ((11, 0.35), (13, 0.9), (15, 1.4), (17, 1.55), (19, 1.55), (21, 1.5)):
            pose[joint + left] = [sign * x, -1, -0.05 if joint == 19 else 0.05 if joint == 17 else 0]
        pose[23 + left] = [sign * 0.2, 0, 0]
        thigh = np.radians(flex if left == 0 else 0)
        shin = thigh - np.radians(knee if left == 0 else 0)
        pose[25 + left] = pose[23 + left] + [0, 0.9 * np.cos(thigh), -0.9 * np.sin(thigh)]
        pose[27 + left] = pose[25 + left] + [0, 0.9 * np.cos(shin), -0.9 * np.sin(shin)]
        pose[29 + left], pose[31 + left] = pose[27 + left] + [0, 0.1, 0.1], pose[27 + left] + [0, 0.1, -0.3]
    return pose
