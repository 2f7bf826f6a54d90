"""Does synthetic data help: the export is read as it was meant, joints move with pictures, intervals are those of people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import synthetic_data
from benchmarks.synthetic_data import SIDE, People
from tasks.common.skeleton import LIMBS
from tasks.config.params import Generate
from tasks.dataset.pose_map import places
from tasks.sample import generate
from tasks.sample.generate import Accepted, Kept
from tests.support import evaluation_workspace


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_data, "RESAMPLES", 400)


# Where the joints of a person are.
JOINTS = np.random.default_rng(0).uniform(0.3, 0.7, (1, 12, 2)).astype(np.float32)


def test_what_generate_writes_is_read_with_its_keypoints(tmp_path: Path) -> None:
    poses = evaluation_workspace.poses(2, 0)
    drawn = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    kept = [Kept(i, name, poses[i], drawn[i], poses[i], 1.0) for i, name in enumerate(("wild", "calm"))]
    generate.write(tmp_path / "export", Accepted(kept, 2, 0.0), Generate(), 0.08, {})
    people = synthetic_data.generated_people(tmp_path / "export", ["calm", "wild"])
    assert people.labels.tolist() == [1, 0] and people.pictures.shape == (2, SIDE, SIDE, 3)
    wanted = places(poses, 0.08)[:, list(LIMBS)]
    inside = ((wanted >= 0) & (wanted < 1)).all(-1)
    np.testing.assert_allclose(people.joints[inside], wanted[inside], atol=1e-3)
    assert np.isnan(people.joints[~inside]).all()


def test_joints_move_with_the_pictures() -> None:
    """A dot that is drawn at a joint is still at the joint after the augmentation, under the name of its mirror image."""
    for joint in (0, 1, 5):
        x = torch.full((64, 3, SIDE, SIDE), -1.0)
        column, row = (int(v * SIDE) for v in JOINTS[0, joint])
        x[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1.0
        y = torch.from_numpy(JOINTS).repeat(64, 1, 1)
        y[:, joint] = torch.tensor([(column + 0.5) / SIDE, (row + 0.5) / SIDE])
        pictures, moved = synthetic_data.varied(x, y, torch.Generator().manual_seed(joint))
        light = pictures.mean(1) - pictures.mean(1).amin((1, 2), keepdim=True)
        light = (light - 0.5 * light.amax((1, 2), keepdim=True)).clamp(min=0)
        centres = (torch.arange(SIDE) + 0.5) / SIDE
        dot = torch.stack([(light.sum(1) * centres).sum(1), (light.sum(2) * centres).sum(1)], 1)
        dot = dot / light.sum((1, 2))[:, None]
        own, exchanged = moved[:, joint], moved[:, synthetic_data._EXCHANGED[joint]]
        mirrored = (exchanged - dot).norm(dim=1) < (own - dot).norm(dim=1)
        distance = torch.where(mirrored, (exchanged - dot).norm(dim=1), (own - dot).norm(dim=1))
        assert distance.max() < 0.6 / SIDE and 10 < mirrored.sum() < 54


def test_a_joint_is_right_within_a_tenth_of_the_box() -> None:
    truth = np.zeros((1, 12, 2))
    truth[0, 1] = [0.2, 0.5]  # the box is 0.5 high
    found = truth + np.array([0.049, 0.0])
    found[0, 2, 0] = 0.051
    truth[0, 3] = np.nan  # not labelled: it does not count
    np.testing.assert_allclose(synthetic_data.right_joints(found, truth), 10 / 11)


def test_intervals_are_those_of_groups_and_seeds() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    independent = rng.normal(size=(3, 400))
    value, low, high = synthetic_data.interval(independent, np.arange(400))
    assert low < value < high and value == pytest.approx(independent.mean())
    together = np.repeat(rng.normal(size=(1, 100)), 4, axis=1).repeat(
        3, axis=0
    )  # four pictures of one person, one answer

    def width(scores: np.ndarray, names: np.ndarray) -> float:
        _, lowest, highest = synthetic_data.interval(scores, names)
        return highest - lowest

    assert 1.6 < width(together, groups) / width(together, np.arange(400)) < 2.4
    seeds = np.array([[-1.0], [0.0], [1.0]]).repeat(
        400, axis=1
    )  # seeds that differ are as wide as if there were one person
    assert width(seeds, groups) > 1.0


def test_the_sentence_follows_the_interval() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(500)
    low = (rng.random((2, 500)) < 0.5).astype(float)
    high = np.maximum(low, rng.random((2, 500)) < 0.4)

    def scores(real: np.ndarray, both: np.ndarray) -> dict[tuple[str, int], list[dict[str, np.ndarray]]]:
        named = {("real", 10): real, ("both", 10): both, ("generated", 0): low}
        return {key: [{"category": row, "keypoints": low[0]} for row in rows] for key, rows in named.items()}

    rows, last = synthetic_data.compared(scores(low, high), groups)
    assert "category, 10 real pictures a category: Synthetic data helps by" in last
    assert "keypoints, 10 real pictures a category: Synthetic data does not help: +0.0" in last
    assert rows[0]["both minus real"][0] == pytest.approx((high - low).mean())
    _, last = synthetic_data.compared(scores(high, low), groups)
    assert "helps" not in last


def test_what_was_measured_of_the_same_people_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (16, SIDE, SIDE, 3)).astype(np.uint8)
    joints = rng.random((16, 12, 2)).astype(np.float32)
    people = People(pictures, joints, np.arange(16) % 2, np.arange(16))
    monkeypatch.setattr(synthetic_data, "STEPS", 1)
    path = tmp_path / "scores/real-8-0.npz"
    first = synthetic_data.kept(path, people, people, 2, 0)
    assert set(first) == {"category", "keypoints"} and all(values.shape == (16,) for values in first.values())
    monkeypatch.setattr(synthetic_data, "score", lambda *_: {"category": np.zeros(16), "keypoints": np.zeros(16)})
    again = synthetic_data.kept(path, people, people, 2, 0)
    assert all(np.array_equal(first[task], again[task]) for task in first)
    other = synthetic_data.kept(path, people.take(np.arange(15)), people, 2, 0)
    assert not other["category"].any() and first["category"].any()


def test_the_joint_net_learns_where_a_dot_is() -> None:
    rng = np.random.default_rng(0)
    joints = rng.uniform(0.3, 0.7, (64, 1, 2)).repeat(12, axis=1).astype(np.float32)
    pictures = np.zeros((64, SIDE, SIDE, 3), np.uint8)
    for picture, (x, y) in zip(pictures, joints[:, 0], strict=True):
        row, column = int(y * SIDE), int(x * SIDE)
        picture[row - 2 : row + 3, column - 2 : column + 3] = 255
    people = People(pictures, joints, np.zeros(64, np.int64), np.arange(64))
    net = synthetic_data.trained_joint_net(people, 0, steps=25)
    with torch.no_grad():
        found = net(synthetic_data.as_input(pictures)).numpy()
    assert np.abs(found - joints).mean() < 0.05  # of the middle of the picture: 0.1
