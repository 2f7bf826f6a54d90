from pathlib import Path

import numpy as np
import pytest

from tasks.common.files import read_json
from tasks.common.images import encode_png
from tasks.config.params import load
from tasks.dataset import shards
from tasks.evaluate import pose_accuracy
from tests.support.mannequins import MODEL, figures
from tests.support.workspaces import write_params


def test_poses_are_found_in_pictures_of_people_and_none_in_an_empty_one() -> None:
    pictures, poses = figures(range(5))
    pictures[4] = 128
    read = pose_accuracy.read_poses(pictures, MODEL, 0.5, workers=1)
    assert np.isnan(read[4]).all()
    found = pose_accuracy.metrics("x", read, poses)
    assert found["x.found"] == pytest.approx(0.8)
    assert found["x.joint_error"] < 0.3 < found["x.joint_error_chance"]
    assert pose_accuracy.metrics("x", read[4:], poses[4:]) == {"x.found": 0.0}


def test_chance_in_clips_is_the_pose_of_another_clip() -> None:
    rng = np.random.default_rng(0)
    clips = np.repeat(rng.normal(size=(3, 1, 33, 3)), 4, axis=1).reshape(12, 33, 3)  # nobody moves
    assert pose_accuracy.metrics("x", clips, clips)["x.joint_error_chance"] < 1  # mostly the same clip
    assert pose_accuracy.metrics("x", clips, clips, 4)["x.joint_error_chance"] > 2


def test_the_stage_reports_the_floor_beside_the_result(tmp_path: Path) -> None:
    params = load(write_params(tmp_path, extract__model=str(MODEL), extract__workers=1))
    pictures, poses = figures(range(6))

    def rows(some: slice, prefix: str, asked: np.ndarray) -> list:
        return [
            (
                f"{prefix}{i}",
                {
                    "png": encode_png(picture),
                    "pose.npy": shards.encode_pose(pose),
                    "json": shards.encode_json({"category": "any", "group": f"{prefix}{i}"}),
                },
            )
            for i, (picture, pose) in enumerate(zip(pictures[some], asked[some], strict=True))
        ]

    first, last = slice(0, 3), slice(3, 6)
    splits = {"train": [], "val": rows(last, "v", poses), "test": []}
    shards.write(tmp_path / "data/shards", splits, 10, {})
    wrong = np.roll(poses, 1, axis=0)  # these pictures do not show what was asked for
    shards.write(tmp_path / "samples/pictures", {"samples": rows(first, "s", wrong), "train_conditions": []}, 10, {})
    pose_accuracy.run(params, tmp_path)
    found = read_json(tmp_path / "reports/pose_accuracy/pose_accuracy.json")["metrics"]
    assert found["floor.joint_error"] < 0.3
    assert found["pictures.joint_error"] > 2 * found["floor.joint_error"]
    assert (tmp_path / "reports/pose_accuracy/pose_accuracy.png").stat().st_size > 1000
    with np.load(tmp_path / "reports/pose_accuracy/read.npz", allow_pickle=False) as read:
        assert read["key"].tolist() == ["s0", "s1", "s2"]
        assert pose_accuracy.joint_errors(read["pose"], poses[:3]).mean() < 0.3
