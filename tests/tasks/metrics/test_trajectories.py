import numpy as np
import pytest

from tasks.common.skeleton import LIMBS
from tasks.metrics.frechet import frechet_estimate, frechet_of
from tasks.metrics.trajectories import FEATURES, FRAMES, MODES, SECONDS, clips, features

TIMES = np.linspace(0, SECONDS, FRAMES)


def person() -> np.ndarray:
    """World landmarks `[33, 3]` of somebody whose torso is 0.5 m long."""
    pose = np.random.default_rng(1).normal(0, 0.3, (33, 3))
    pose[[23, 24]] = [[0.1, 0, 0], [-0.1, 0, 0]]
    pose[[11, 12]] = [[0.2, -0.5, 0], [-0.2, -0.5, 0]]
    return pose


def modes() -> np.ndarray:
    """Orthogonal cosines over time, `[MODES, FRAMES]`, mean square 1."""
    t = (np.arange(FRAMES) + 0.5) / FRAMES
    cosines = np.cos(np.pi * np.arange(MODES)[:, None] * t)
    return cosines / np.sqrt((cosines**2).mean(axis=1, keepdims=True))


def motions(n: int, seed: int, scale: float, shift: float = 0.0) -> np.ndarray:
    """Clips `[n, FRAMES, 33, 3]` whose wrists move as Gaussian sums of the slow cosines."""
    rng = np.random.default_rng(seed)
    out = np.tile((person() * 2).astype(np.float32), (n, FRAMES, 1, 1))
    amplitudes = rng.normal(shift, scale, (n, 2, 3, MODES))
    out[:, :, [15, 16]] += np.einsum("njcm,mt->ntjc", amplitudes, modes()).astype(np.float32)
    return out


def test_the_distance_of_gaussian_motions_equals_the_closed_form() -> None:
    """Independent amplitudes: sum over 2 joints, 3 axes and MODES of (mean difference)^2 + (difference of spreads)^2."""
    x, y = (features(motions(4000, seed, *law)) for seed, law in ((0, (0.3, 0.0)), (1, (0.5, 0.1))))
    expected = 2 * 3 * MODES * (0.1**2 + 0.2**2)
    assert frechet_of(x, y) == pytest.approx(expected, rel=0.05)
    few = [features(motions(2 * FEATURES + 40, seed, *law)) for seed, law in ((2, (0.3, 0.0)), (3, (0.5, 0.1)))]
    estimate = frechet_estimate(few[0], few[1], np.random.default_rng(0))
    assert estimate.low < expected < estimate.high


def test_the_same_poses_in_another_order_are_another_motion() -> None:
    still = motions(300, 0, 0.3)
    shuffled = still[:, np.random.default_rng(0).permutation(FRAMES)]
    assert np.allclose(still.mean(axis=1), shuffled.mean(axis=1), atol=1e-5)
    assert frechet_of(features(still), features(shuffled)) > 20 * frechet_of(
        features(still), features(motions(300, 1, 0.3))
    )


def test_jitter_changes_the_features() -> None:
    smooth = motions(50, 0, 0.3)
    trembling = smooth + np.random.default_rng(1).normal(0, 0.1, smooth.shape).astype(np.float32)
    last = features(trembling).reshape(50, MODES + 1, -1)[:, -1]
    assert features(smooth).reshape(50, MODES + 1, -1)[:, -1].max() < 1e-4
    assert last.shape[1] == len(LIMBS) * 3
    assert (last**2).mean() == pytest.approx(0.1**2 * (1 - MODES / FRAMES), rel=0.1)


def moving(seconds: np.ndarray) -> np.ndarray:
    """Somebody who walks away to the right and lifts the left wrist: world landmarks `[n, 33, 3]`."""
    poses = np.tile(person(), (len(seconds), 1, 1))
    poses[:, 15, 1] -= 0.2 * seconds
    return poses + np.stack([seconds, 0 * seconds, 0 * seconds], axis=-1)[:, None]


def test_clips_depend_neither_on_the_frame_rate_nor_on_the_position_of_the_person() -> None:
    rows = {rate: np.arange(0, 6.01, 1 / rate) for rate in (10, 25)}
    found = {rate: clips(moving(t), ["a"] * len(t), [0] * len(t), t) for rate, t in rows.items()}
    assert found[10].source == ["a"] * 3
    np.testing.assert_allclose(found[10].poses, found[25].poses, atol=1e-5)
    first = found[10].poses[0]
    np.testing.assert_allclose(first[:, 23] + first[:, 24], 0, atol=1e-6)
    np.testing.assert_allclose(first[:, 11, 1], -1, atol=1e-6)  # torso lengths
    np.testing.assert_allclose(np.diff(first[:, 15, 1]), -0.4 * SECONDS / (FRAMES - 1), atol=1e-5)


def test_a_clip_holds_one_person_of_one_video_without_interruption() -> None:
    times = np.arange(0, 2.05, 0.1)
    seconds = np.concatenate([times, times, times + 10, times + 12.5, times[:15]])
    source = ["a"] * (3 * len(times)) + ["a"] * len(times) + ["b"] * 15
    track = [0] * len(times) + [1] * len(times) + [0] * (2 * len(times)) + [0] * 15
    order = np.random.default_rng(0).permutation(len(seconds))
    found = clips(moving(seconds)[order], [source[i] for i in order], [track[i] for i in order], seconds[order])
    # Two persons, one of whom comes back (with a pause short enough to bridge): b is too short.
    assert sorted(found.source) == ["a"] * 4
    nothing = clips(np.zeros((0, 33, 3)), [], [], np.zeros(0))
    assert nothing.poses.shape == (0, FRAMES, 33, 3) and features(nothing.poses).shape == (0, FEATURES)
