from functools import partial

import numpy as np
import pytest

from tasks.common import skeleton
from tasks.common.skeleton import face_forward
from tasks.evaluate.memorization.invariances import EDGES, GEOMETRIC, POSES, TURNED_POSES, Bank, flip, shift, zoom_out
from tasks.metrics.features import edges


def pictures(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(size=(n, 8, 8, 3)).astype(np.float32)
    return coarse.repeat(side // 8, axis=1).repeat(side // 8, axis=2)


def smallest_distance(bank: Bank, items: np.ndarray, originals: np.ndarray) -> np.ndarray:
    return np.linalg.norm(bank.transformed_features(items) - bank.features(originals), axis=-1).min(axis=0)


def test_geometric_bank_undoes_mirror_and_shift() -> None:
    originals = pictures(3)
    for disguise in (flip, partial(shift, 2, 0), partial(shift, 0, -1)):
        copies = disguise(originals)
        apart = np.linalg.norm((copies - originals).reshape(3, -1), axis=1)
        assert (smallest_distance(GEOMETRIC, copies, originals) < 0.35 * apart).all()
    assert smallest_distance(GEOMETRIC, flip(originals), originals) == pytest.approx(0, abs=1e-6)


def test_shift_moves_the_picture_to_the_right_and_down() -> None:
    picture = np.zeros((1, 5, 5, 3), np.float32)
    picture[0, 2, 2] = 1
    assert shift(1, 2, picture)[0, 4, 3, 0] == 1
    assert shift(1, 2, picture).sum() == 3


def test_zoom_out_keeps_size_and_flat_colour() -> None:
    flat = np.full((2, 32, 32, 3), 0.25, np.float32)
    assert zoom_out(3, flat) == pytest.approx(flat, abs=1e-6)


def test_edges_do_not_depend_on_brightness_and_contrast() -> None:
    picture = pictures(2)
    assert edges(0.5 * picture + 0.3) == pytest.approx(edges(picture), abs=1e-5)
    assert (edges(np.ones((1, 32, 32, 3), np.float32)) == 0).all()
    assert smallest_distance(EDGES, flip(picture), picture) == pytest.approx(0, abs=1e-5)


def test_pose_bank_finds_the_mirror_image_with_sides_swapped() -> None:
    pose = np.random.default_rng(0).normal(size=(4, 33, 3)).astype(np.float32)
    assert smallest_distance(POSES, skeleton.mirror(pose), pose) == pytest.approx(0, abs=1e-6)
    wrong = pose * np.array([-1, 1, 1], np.float32)  # mirrored, names kept
    assert (smallest_distance(POSES, wrong, pose) > 1).all()


def test_facing_forward_removes_only_the_yaw() -> None:
    poses = np.random.default_rng(0).normal(size=(20, 33, 3))
    angle = 2.0
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    assert face_forward(poses @ turn) == pytest.approx(face_forward(poses), abs=1e-12)
    forward = face_forward(poses)
    across = forward[:, [11, 23]].sum(axis=1) - forward[:, [12, 24]].sum(axis=1)
    assert across[:, 2] == pytest.approx(0, abs=1e-12)
    assert (across[:, 0] > 0).all()
    between = np.linalg.norm(poses[:, 3] - poses[:, 20], axis=-1)
    assert np.linalg.norm(forward[:, 3] - forward[:, 20], axis=-1) == pytest.approx(between)
    assert face_forward(skeleton.mirror(forward)) == pytest.approx(skeleton.mirror(forward), abs=1e-12)


def test_turned_bank_finds_a_pose_seen_from_elsewhere() -> None:
    pose = np.random.default_rng(1).normal(size=(4, 33, 3)).astype(np.float32)
    turned = pose @ np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
    assert (smallest_distance(POSES, turned, pose) > 1).all()
    assert smallest_distance(TURNED_POSES, turned, pose) == pytest.approx(0, abs=1e-5)
