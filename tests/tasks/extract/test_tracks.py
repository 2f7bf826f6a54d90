"""Tracks of persons in a video, and the selection of frames with a new pose."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.extract.landmarker import Person
from tasks.extract.tracks import Movement, Tracks
from tests.support.workspaces import figure


def person(x: float, y: float = 0.5, size: float = 0.1) -> Person:
    pose = figure(np.random.default_rng(0), 0)
    landmarks = np.zeros((33, 5), np.float32)
    landmarks[:, :2] = pose[:, :2] * size + [x, y]
    return Person(landmarks, pose)


def test_persons_keep_their_tracks_in_any_order() -> None:
    tracks = Tracks()
    assert tracks.follow(0.0, [person(0.2), person(0.8)], 400, 400) == [0, 1]
    assert tracks.follow(0.25, [person(0.78), person(0.22)], 400, 400) == [1, 0]
    assert tracks.follow(0.5, [person(0.24), person(0.5), person(0.76)], 400, 400) == [0, 2, 1]
    assert tracks.follow(0.75, [], 400, 400) == []
    assert tracks.follow(1.0, [person(0.76)], 400, 400) == [1]


def test_a_jump_or_a_long_absence_starts_a_new_track() -> None:
    tracks = Tracks()
    assert tracks.follow(0.0, [person(0.1)], 400, 400) == [0]
    assert tracks.follow(0.25, [person(0.9)], 400, 400) == [1]
    assert tracks.follow(5.0, [person(0.9)], 400, 400) == [2]


def test_distances_are_in_pixels() -> None:
    """In a picture ten times as wide as high, a tenth of the width is as long as the whole height."""
    tracks = Tracks()
    assert tracks.follow(0.0, [person(0.5, size=0.02)], 4000, 400) == [0]
    assert tracks.follow(0.25, [person(0.7, size=0.02)], 4000, 400) == [1]
    assert tracks.follow(0.5, [person(0.7, 0.45, size=0.02)], 4000, 400) == [1]


def test_only_a_new_pose_counts_as_movement() -> None:
    """Moving all 12 limbs by d torso lengths is a distance of d, for any size and position of the person."""
    pose = figure(np.random.default_rng(0), 0).astype(np.float64)
    torso = np.linalg.norm(pose[[11, 12]].mean(0) - pose[[23, 24]].mean(0))
    arms = pose.copy()
    arms[[13, 14, 15, 16]] += np.array([0, 0, 0.15 * 3.01 * torso])  # 4 of 12 limbs
    movement = Movement(0.15)
    assert movement.shows({0: pose})
    assert not movement.shows({0: 3 * pose + 7})
    assert movement.shows({0: arms})
    assert not movement.shows({0: arms})
    assert movement.shows({0: arms, 1: pose}), "somebody new"
    assert not movement.shows({1: pose})


def test_slow_movement_adds_up() -> None:
    pose = figure(np.random.default_rng(0), 0).astype(np.float64)
    movement = Movement(0.15)
    shown = []
    for i in range(11):
        slow = pose.copy()
        slow[[13, 14, 15, 16, 25, 26, 27, 28], 2] += 0.06 * i
        shown.append(movement.shows({0: slow}))
    assert shown[0] and not shown[1] and sum(shown) == pytest.approx(4, abs=1)
