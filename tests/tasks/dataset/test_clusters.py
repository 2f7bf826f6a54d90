"""Pose clusters: known kinds of poses are found, independent of camera, mirroring and number of threads."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from tasks.common import skeleton
from tasks.dataset import clusters
from tasks.dataset.clusters import fit, points

KINDS = 5


def planted(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """n poses of KINDS kinds, turned about the vertical and mirrored at random; and their kinds."""
    rng = np.random.default_rng(seed)
    body = np.zeros((33, 3))
    body[:, 0] = np.where(np.arange(33) % 2, 0.3, -0.3)
    body[0, 0] = 0
    body[11:13, 1] = -1
    limbs = np.random.default_rng(99).normal(scale=0.5, size=(KINDS, 33, 3))
    limbs[:, [11, 12, 23, 24]] = 0
    kind = rng.integers(0, KINDS, n)
    pose = body + limbs[kind] + rng.normal(scale=0.03, size=(n, 33, 3))
    flipped = rng.random(n) < 0.5
    pose = np.where(flipped[:, None, None], skeleton.mirror(pose), pose)
    yaw = rng.uniform(-1.2, 1.2, n)
    cosine, sine, still = np.cos(yaw), np.sin(yaw), np.zeros(n)
    turn = np.array([[cosine, still, sine], [still, still + 1, still], [-sine, still, cosine]]).transpose(2, 0, 1)
    return skeleton.normalise(pose @ turn).astype(np.float32), kind


def test_known_kinds_are_found_for_any_camera_and_mirroring():
    poses, kind = planted(400)
    clustering = fit(poses)
    assert len(clustering.centroids) == KINDS
    labels = clustering.assign(poses)
    assert len(set(zip(kind.tolist(), labels.tolist(), strict=True))) == KINDS  # each kind is one cluster
    assert (np.diff(np.bincount(labels)) <= 0).all()  # the largest first
    fresh, kinds = planted(100, seed=1)
    assert len(set(zip(kind.tolist(), labels.tolist(), strict=True)) | set(
        zip(kinds.tolist(), clustering.assign(fresh).tolist(), strict=True))) == KINDS  # fmt: skip


def test_a_pose_turned_or_mirrored_is_the_same_point():
    poses, _ = planted(50)
    axis = clusters.left_right_axis(poses)
    assert points(skeleton.mirror(poses), axis) == pytest.approx(points(poses, axis), abs=1e-5)
    quarter = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
    assert points(poses @ quarter, axis) == pytest.approx(points(poses, axis), abs=1e-5)


def test_poses_that_are_all_the_same_are_one_cluster():
    poses, _ = planted(1)
    clustering = fit(np.repeat(poses, 40, axis=0))
    assert set(clustering.assign(poses).tolist()) == {0}
    assert set(clustering.silhouettes.values()) == {0.0}


def test_the_same_poses_give_the_same_bits_with_any_number_of_threads():
    poses, _ = planted(300)
    threads = faiss.omp_get_max_threads()
    try:
        results = []
        for count in (1, 2, 2):
            faiss.omp_set_num_threads(count)
            results.append(fit(poses))
    finally:
        faiss.omp_set_num_threads(threads)
    assert all(np.array_equal(results[0].centroids, other.centroids) for other in results[1:])


def test_a_handful_of_poses_is_one_cluster():
    poses, _ = planted(19)
    clustering = fit(poses)
    assert len(clustering.centroids) == 1 and clustering.silhouettes == {}
    assert set(clustering.assign(poses).tolist()) == {0}
