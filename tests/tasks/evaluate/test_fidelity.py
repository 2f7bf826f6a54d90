import json
from pathlib import Path

import numpy as np
import pytest

from tasks.common import skeleton
from tasks.common.errors import DataError
from tasks.config.params import Params, load
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import fidelity
from tasks.metrics.anatomy import bone_lengths, sides_mixed
from tasks.metrics.features import joints
from tasks.metrics.frechet import frechet_of
from tests.support.evaluation_workspace import make, poses, standing
from tests.support.project import PROJECT


@pytest.fixture(scope="module")
def params() -> Params:
    return load(PROJECT / "params.yaml")


def report(root: Path) -> dict:
    return json.loads((root / "reports/fidelity/fidelity.json").read_text())


def test_fresh_poses_are_near_held_out_ones_and_independent_joints_are_not(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 220, 150, 60, 220, 30)
    fidelity.run(params, tmp_path)
    found = report(tmp_path)
    metrics = found["metrics"]
    assert metrics["poses.frechet_pose_distance_over_noise"] < 0.1
    assert metrics["poses.frechet_pose_distance"] < 2 * metrics["poses.frechet_pose_distance_floor"]
    low, high = (metrics[f"poses.frechet_pose_distance_corrected_{end}"] for end in ("low", "high"))
    assert low < metrics["poses.frechet_pose_distance_corrected"] < high
    assert abs(metrics["poses.frechet_pose_distance_corrected"]) < 0.3 * metrics["poses.frechet_pose_distance"]
    assert metrics["poses.coverage"] > 0.8
    assert metrics["poses.bone_length_worst_deviation"] < 0.05
    assert metrics["poses.sides_mixed"] == metrics["poses.sides_mixed_train"] == 0
    assert all(row["within"] for row in found["bones"])
    # torch-fidelity's number and ours, on what is in the folders.
    generated = joints(ShardDataset(tmp_path / "samples/poses", "samples").poses())
    heldout = np.concatenate([ShardDataset(tmp_path / "data/shards", s).poses() for s in ("val", "test")])
    assert metrics["poses.frechet_pose_distance"] == pytest.approx(frechet_of(generated, joints(heldout)), rel=1e-6)
    assert "fidelity.inception is not given" in found["absent"]["pictures.fid"]
    assert {"pictures.pixel_kernel_distance", "pictures.edge_kernel_distance_floor"} <= metrics.keys()
    turned = metrics["poses.turned_frechet_pose_distance_corrected"]
    assert abs(turned) < 0.3 * metrics["poses.frechet_pose_distance"]


def test_few_samples_leave_metrics_absent_with_the_reason(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 15, 3, 2, 20, 20)
    fidelity.run(params, tmp_path)
    found = report(tmp_path)
    assert "at least 198 samples on each side, and there are 5" in found["absent"]["poses.frechet_pose_distance"]
    assert not any("frechet" in name or "kernel" in name for name in found["metrics"])
    assert len(found["bones"]) == len(skeleton.LIMB_BONES)


def test_without_samples_there_are_no_metrics(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 15, 3, 2, 0, 0)
    fidelity.run(params, tmp_path)
    assert report(tmp_path)["absent"]["poses"] == "there are no generated poses."


def test_samples_that_are_not_finite_are_refused_and_the_last_report_stays(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 15, 3, 2, 20, 0)
    fidelity.run(params, tmp_path)
    last = report(tmp_path)
    bad = poses(20, 4)
    bad[7, 3, 1] = np.nan
    rows = [(f"{i}", {"pose.npy": shards.encode_pose(pose), "json": b"{}"}) for i, pose in enumerate(bad)]
    shards.write(tmp_path / "samples/poses", {"samples": rows}, 100, {})
    with pytest.raises(DataError, match="the generated poses: 1 of 20 rows are not finite, the first is row 7"):
        fidelity.run(params, tmp_path)
    assert report(tmp_path) == last


def test_one_sample_has_no_distances(tmp_path: Path, params: Params) -> None:
    make(tmp_path, 15, 8, 2, 1, 1)
    fidelity.run(params, tmp_path)
    absent = report(tmp_path)["absent"]
    assert "and there are 1" in absent["poses.frechet_pose_distance"]
    assert "and there are 1" in absent["pictures.pixel_kernel_distance"] and "poses.recall" in absent


def test_independent_joints_keep_the_law_of_each_joint_but_not_the_bones() -> None:
    real = poses(4000, 0)
    noise = fidelity.independent_joints(real, 4000, np.random.default_rng(0))
    assert noise.mean(0) == pytest.approx(real.mean(0), abs=0.01)
    assert np.cov(noise[:, 15], rowvar=False) == pytest.approx(np.cov(real[:, 15], rowvar=False), rel=0.2, abs=2e-4)
    assert bone_lengths(noise).std(0).mean() > 1.2 * bone_lengths(real).std(0).mean()


def test_sides_are_mixed_when_names_are_swapped_or_the_torso_crosses() -> None:
    person = standing()[None]
    turned = person @ np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # seen from the side
    swapped = person[:, skeleton.MIRROR]
    crossed = person.copy()
    crossed[:, [11, 12]] = crossed[:, [12, 11]]
    assert sides_mixed(np.concatenate([person, turned, skeleton.mirror(person), swapped, crossed])).tolist() == [
        False, False, False, True, True,
    ]  # fmt: skip
