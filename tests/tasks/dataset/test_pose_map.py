"""Pose maps match the person's place in the picture."""

import numpy as np

from tasks.common.skeleton import mirror
from tasks.dataset.crop import square
from tasks.dataset.pose_map import AT_ONCE, CHANNELS, PARTS, WIDTH, places, pose_map
from tests.support.workspaces import figure


def test_a_mirrored_pose_has_the_mirrored_map_with_sides_exchanged() -> None:
    pose = figure(np.random.default_rng(0), 1)
    maps = pose_map(np.stack([pose, mirror(pose)]), 32, 0.1).numpy()
    exchanged = maps[1][[1, 0, 3, 2, 4, 5], :, ::-1]
    assert maps.shape == (2, CHANNELS, 32, 32)
    assert np.abs(maps[0] - exchanged).max() < 0.02
    assert np.abs(maps[0] - maps[1]).max() > 0.5


def test_bones_are_bright_where_joints_fall_in_the_crop() -> None:
    pose, size = figure(np.random.default_rng(1), 0), 64
    maps = pose_map(pose[None], size, 0.08)[0].numpy()
    x0, y0, side = square(pose[:, :2].astype(float) * 1000, 0.08)
    for joint, channel in ((15, 0), (16, 1), (27, 2), (28, 3), (12, 4), (0, 5)):
        x, y = ((pose[joint, :2] * 1000 - [x0, y0]) / side * size).astype(int)
        assert maps[channel, y, x] > 0.9
        assert maps[channel].mean() < 0.2


def test_size_and_place_of_the_person_do_not_matter() -> None:
    pose = figure(np.random.default_rng(2), 1)
    moved = (pose * 1.7 + [3, -2, 5]).astype(np.float32)
    maps = pose_map(np.stack([pose, moved]), 32, 0.1).numpy()
    assert np.abs(maps[0] - maps[1]).max() < 0.02


def test_a_map_falls_with_the_distance_to_the_nearest_bone() -> None:
    """Against the definition, pixel by pixel; of more poses than are drawn at a time, one with a bone of length zero."""
    random, size = np.random.default_rng(3), 8
    poses = np.stack([figure(random, 1) for _ in range(AT_ONCE + 2)])
    poses[-1, 13] = poses[-1, 11]
    joints = places(poses, 0.1)
    centres = (np.arange(size) + 0.5) / size
    wanted = np.zeros((len(poses), CHANNELS, size, size))
    for n, channel, row, column in np.ndindex(wanted.shape):
        pixel = np.array([centres[column], centres[row]])
        distances = [distance_to_segment(pixel, joints[n, a], joints[n, b]) for a, b in PARTS[channel]]
        wanted[n, channel, row, column] = np.exp(-(min(distances) ** 2) / (2 * WIDTH**2))
    np.testing.assert_allclose(pose_map(poses, size, 0.1).numpy(), wanted, atol=1e-5)


def distance_to_segment(point: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    if (a == b).all():
        return float(np.linalg.norm(point - a))
    share = np.clip(np.dot(point - a, b - a) / np.dot(b - a, b - a), 0, 1)
    return float(np.linalg.norm(point - a - share * (b - a)))
