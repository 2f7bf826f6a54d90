"""The figure: bone lengths, feet on the floor, mirror symmetry, no overlap of limbs and body."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import numpy as np
import pytest

from tasks.common.skeleton import INDEX, LANDMARKS, mirror, normalise
from tasks.synthetic.body import body_solids, landmarks
from tasks.synthetic.figure import SIDES, Arm, Body, Leg, Pose, Skeleton, Trunk, lowest, place
from tasks.synthetic.postures import CATEGORIES, DORSIFLEXION, SOFTNESS, dorsiflexion, draw, overlap
from tasks.synthetic.stage import random_body

STRAIGHT = Pose(Trunk(), Arm(), Arm(), Leg(), Leg())


def drawn(category: str, count: int = 6, seed: int = 0) -> Iterator[tuple[Body, Pose, Skeleton]]:
    """Bodies with a pose and frames."""
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        body = random_body(rng)
        yield body, *draw(category, body, rng)


@pytest.mark.parametrize("category", CATEGORIES)
def test_bones_have_the_lengths_of_the_body(category: str) -> None:
    for body, _, parts in drawn(category):
        points = landmarks(body, parts)
        for first, second, length in (
            ("shoulder", "elbow", body.upper_arm),
            ("elbow", "wrist", body.forearm),
            ("hip", "knee", body.thigh),
            ("knee", "ankle", body.shin),
        ):
            for side in SIDES:
                a, b = (points[INDEX[f"{side}_{joint}"]] for joint in (first, second))
                assert np.linalg.norm(a - b) == pytest.approx(length, abs=1e-9)
        hips = points[INDEX["left_hip"]] - points[INDEX["right_hip"]]
        assert np.linalg.norm(hips) == pytest.approx(2 * body.hip, abs=1e-9)
        for part in parts.values():
            assert np.allclose(part.axes @ part.axes.T, np.eye(3), atol=1e-9)
            assert np.linalg.det(part.axes) == pytest.approx(1)


@pytest.mark.parametrize("category", CATEGORIES)
def test_planted_feet_stand_on_the_floor_and_nothing_is_below_it(category: str) -> None:
    for body, pose, parts in drawn(category):
        heights = [lowest(body, parts[f"{name}_foot"]) for name in SIDES]
        for height, planted in zip(heights, pose.planted, strict=True):
            assert not planted or height == pytest.approx(0, abs=1e-3)
        if not any(pose.planted):
            assert max(heights) == pytest.approx(-pose.jump, abs=1e-9)
        deepest = max(max(s.start[1] + s.first, s.end[1] + s.last) for s in body_solids(body, parts).values())
        assert deepest <= SOFTNESS


@pytest.mark.parametrize("category", CATEGORIES)
def test_poses_respect_overlap_and_ankle_limits(category: str) -> None:
    for body, pose, parts in drawn(category, count=12):
        assert overlap(body_solids(body, parts)) <= SOFTNESS
        assert dorsiflexion(pose, parts) <= DORSIFLEXION
        for name in SIDES:  # knees bend backward only
            thigh, shin = parts[f"{name}_thigh"].axes, parts[f"{name}_shin"].axes
            assert thigh[:, 2] @ shin[:, 1] >= -1e-9


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_mirrored_pose_has_the_mirrored_landmarks(category: str) -> None:
    for body, pose, parts in drawn(category, count=3):
        seen = landmarks(body, place(body, pose.mirrored()))
        assert np.allclose(seen, mirror(landmarks(body, parts)), atol=1e-9)


def test_angles_are_anatomical() -> None:
    """In a figure that faces the camera (-z), its left is at +x."""
    body = random_body(np.random.default_rng(0))

    def at(pose: Pose) -> dict[str, np.ndarray]:
        return dict(zip(LANDMARKS, landmarks(body, place(body, pose)), strict=True))

    rest = at(STRAIGHT)
    assert rest["left_shoulder"][0] > 0 > rest["right_shoulder"][0]
    assert rest["nose"][2] < rest["left_ear"][2]
    assert rest["left_foot_index"][2] < rest["left_heel"][2]
    aside = at(replace(STRAIGHT, left_arm=Arm(plane=0, elevation=90)))
    assert aside["left_wrist"][0] > rest["left_wrist"][0] + body.upper_arm
    ahead = at(replace(STRAIGHT, left_arm=Arm(plane=90, elevation=90)))
    assert ahead["left_wrist"][2] < rest["left_wrist"][2] - body.upper_arm
    bent = at(replace(STRAIGHT, right_arm=Arm(elbow=90)))
    assert bent["right_wrist"] - bent["right_elbow"] == pytest.approx([0, 0, -body.forearm])
    kick = at(replace(STRAIGHT, left_leg=Leg(flex=90, knee=90), planted=(False, True)))
    assert kick["left_knee"] - kick["left_hip"] == pytest.approx([0, 0, -body.thigh])
    assert kick["left_ankle"] - kick["left_knee"] == pytest.approx([0, body.shin, 0])
    spread = at(replace(STRAIGHT, right_leg=Leg(abduct=40), planted=(True, False)))
    assert spread["right_ankle"][0] < rest["right_ankle"][0] - 0.3
    look = at(replace(STRAIGHT, trunk=Trunk(look=50)))
    assert look["nose"][0] > 0.05
    lean = at(replace(STRAIGHT, trunk=Trunk(lean=30)))
    assert lean["nose"][2] < rest["nose"][2] - 0.2


def test_overlap_detects_a_hand_in_the_belly_and_a_foot_in_the_floor() -> None:
    body = random_body(np.random.default_rng(0))
    clear = replace(STRAIGHT, left_arm=Arm(elevation=30), right_arm=Arm(elevation=30), left_leg=Leg(abduct=8))
    assert overlap(body_solids(body, place(body, clear))) <= SOFTNESS
    inside = replace(clear, left_arm=Arm(plane=0, elevation=5, twist=85, elbow=110))
    assert overlap(body_solids(body, place(body, inside))) > 0.03
    stepping = replace(clear, right_leg=Leg(flex=40, knee=80), planted=(False, True))
    assert overlap(body_solids(body, place(body, stepping))) > 0.03


def test_half_of_the_poses_are_mirrored() -> None:
    lifted = [pose.planted[1] for _, pose, _ in drawn("tree", count=40)]
    assert 10 <= sum(lifted) <= 30


def test_bodies_have_human_proportions() -> None:
    for seed in range(50):
        body = random_body(np.random.default_rng(seed))
        assert all(length > 0 for length in asdict(body).values())
        points = landmarks(body, place(body, STRAIGHT))
        assert 1.3 < -points[:, 1].min() < 2.0  # eyes over the floor
        assert 0.8 < (body.upper_arm + body.forearm) / (body.thigh + body.shin) * 1.5 < 1.3


def test_poses_differ_in_many_ways() -> None:
    """No pose has a near copy, and the nearest pose is hardly nearer than the next: many dimensions vary."""
    poses = []
    for category in CATEGORIES:
        for body, _, parts in drawn(category, count=24):
            poses.append(normalise(landmarks(body, parts)).ravel())
    x = np.array(poses)
    distance = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), axis=1)
    assert distance[:, 1].min() > 0.3  # torso lengths, over 33 landmarks
    assert np.mean(distance[:, 1] / distance[:, 2] < 1 / 3) == 0
    variance = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert np.searchsorted(np.cumsum(variance) / variance.sum(), 0.95) >= 9
