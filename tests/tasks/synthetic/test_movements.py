"""The animated mannequin: rigid bones, feet that stand do not slide, every movement is a pure function of its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tasks.common import motion
from tasks.common.skeleton import INDEX
from tasks.metrics.anatomy import bone_lengths, sides_mixed
from tasks.synthetic import animate
from tasks.synthetic.figure import lowest
from tasks.synthetic.movements import MOVEMENTS, skeleton
from tasks.synthetic.stage import random_body
from tests.support import motion_workspace

RATE = 30.0
CLIPS = [animate.animated(5, i, 1.0, RATE) for i in range(len(MOVEMENTS))]


def test_there_are_at_least_twelve_movements() -> None:
    assert len(MOVEMENTS) >= 12 and [clip.category for clip in CLIPS] == list(MOVEMENTS)


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.category)
def test_bones_are_rigid_and_left_is_left(clip: animate.Animated) -> None:
    lengths = bone_lengths(clip.joints)
    arms_and_shoulders = lengths[:, [0, 1, 2, 3, 4, 6, 9]]  # upper arms, forearms, thighs, hips
    assert np.ptp(arms_and_shoulders, axis=0).max() < 1e-4
    assert not sides_mixed(clip.joints).any()


@pytest.mark.parametrize("category", MOVEMENTS)
def test_feet_stay_above_the_floor_and_standing_ones_do_not_slide(category: str) -> None:
    rng = np.random.default_rng(3)
    body = random_body(rng)
    movement = MOVEMENTS[category](body, rng)
    times = np.arange(60) / 60
    moments = [movement(float(time)) for time in times]
    frames = [skeleton(body, moment) for moment in moments]
    for side in ("left", "right"):
        feet = [getattr(moment, side) for moment in moments]
        heights = [-lowest(body, parts[f"{side}_foot"]) for parts in frames]
        assert min(heights) > -0.03
        for before, after, first, last in zip(feet, feet[1:], frames, frames[1:], strict=False):
            stands = before is not None and after is not None and before.lift == after.lift == 0 and before == after
            if stands:
                step = last[f"{side}_foot"].origin - first[f"{side}_foot"].origin
                assert np.linalg.norm(step) < 2e-3


def test_a_walk_goes_where_the_person_faces() -> None:
    i = list(MOVEMENTS).index("walk")
    clip = animate.animated(0, i, 1.0, RATE).joints.astype(np.float64)
    path = motion.middle_of_hips(motion.canonical(clip[None])[0])
    assert path[-1, 2] < -0.6 and abs(path[-1, 0]) < 0.4
    toes = clip[:, INDEX["left_foot_index"]] - clip[:, INDEX["left_heel"]]
    assert ((clip[-1] - clip[0]).mean(axis=0) @ toes.mean(axis=0)) > 0


def test_clips_vary_and_the_bytes_do_not_depend_on_the_count(tmp_path: Path) -> None:
    small, large = (tmp_path / name for name in ("small", "large"))
    animate.run(motion_workspace.params(small, motion__animation__count=4, motion__animation__seconds=0.5), small)
    animate.run(motion_workspace.params(large, motion__animation__count=16, motion__animation__seconds=0.5), large)
    few, many = (np.load(root / "data/animation/joints.npy") for root in (small, large))
    assert few.shape == (4, 7, 33, 3) and np.array_equal(few, many[:4])
    assert not np.allclose(many[0], many[15])  # the same movement
    assert np.array_equal(many[3], animate.animated(0, 3, 0.5, 12.0).joints)
