"""Standing feet stop sliding, legs keep their lengths, and nothing else moves."""

from __future__ import annotations

import numpy as np

from tasks.common.foot_lock import locked, stands
from tasks.common.skeleton import INDEX
from tasks.metrics import motion as metrics

RATE, FRAMES = 12.0, 24
TIP, ANKLE, KNEE, HIP = (INDEX[f"left_{name}"] for name in ("foot_index", "ankle", "knee", "hip"))


def _sliding(lift: bool = False, slide: float = 0.01) -> np.ndarray:
    """A person who stands with bent knees and whose left foot slides forward; with `lift` it is in the air in the middle."""
    pose = np.zeros((33, 3))
    for side, x in (("left", 0.2), ("right", -0.2)):
        for name, y, z in (
            ("hip", 0, 0),
            ("knee", 0.7, -0.3),
            ("ankle", 1.4, 0),
            ("heel", 1.5, 0.1),
            ("foot_index", 1.5, -0.3),
        ):
            pose[INDEX[f"{side}_{name}"]] = x, y, z
    clip = np.repeat(pose[None, None], FRAMES, axis=1)
    leg = [INDEX[f"left_{name}"] for name in ("ankle", "heel", "foot_index")]
    clip[0][:, leg, 2] -= slide * (np.arange(FRAMES)[:, None] - FRAMES / 2)
    if lift:
        clip[0][8:16, leg, 1] -= 0.4
    return clip


def test_a_standing_foot_stays_and_the_leg_keeps_its_lengths() -> None:
    clip = _sliding()
    fixed = locked(clip, RATE)
    assert metrics.foot_skating(clip, RATE) > 0.05 and metrics.foot_skating(fixed, RATE) < 1e-9
    for one, other in ((HIP, KNEE), (KNEE, ANKLE), (ANKLE, TIP)):
        lengths = [np.linalg.norm(c[0, :, one] - c[0, :, other], axis=-1) for c in (clip, fixed)]
        assert np.allclose(*lengths, atol=1e-9)
    moved = [INDEX[f"left_{name}"] for name in ("knee", "ankle", "heel", "foot_index")]
    others = [joint for joint in range(33) if joint not in moved]
    assert np.allclose(fixed[:, :, others], clip[:, :, others], atol=1e-12)


def test_a_foot_in_the_air_is_moved_only_where_the_shift_fades() -> None:
    clip = _sliding(lift=True, slide=0.03)
    standing = stands(clip[:, :, [TIP]], RATE)[0, :, 0]
    assert standing[:7].all() and not standing[7:16].any()
    fixed = locked(clip, RATE)
    assert np.allclose(fixed[0, 12, TIP], clip[0, 12, TIP], atol=0.02)
    assert np.allclose(fixed[0, :8, TIP, 2], fixed[0, 0, TIP, 2]) and np.allclose(
        fixed[0, 17:, TIP, 2], fixed[0, 17, TIP, 2]
    )
    steps = np.abs(np.diff(fixed[0, :, TIP, 2]))
    assert steps.max() < 0.07  # no jump where a foot leaves the floor


def test_a_place_out_of_reach_is_approached_and_true_motion_stays() -> None:
    clip = _sliding()
    far = clip.copy()
    far[0][:, [INDEX[f"left_{name}"] for name in ("ankle", "heel", "foot_index")], 2] -= (
        0.2 * np.arange(FRAMES)[:, None]
    )
    assert np.isfinite(locked(far, RATE)).all()
    still = np.repeat(clip[:, :1], FRAMES, axis=1)
    assert np.array_equal(locked(still, RATE), still)
