"""Categories for people without labels: k-means of poses, with the number of clusters chosen by the silhouette.

A category is what the body does, not where the camera stood and not which leg is in front: poses are turned to face
forward, and of a pose and its mirror image the one is taken that leans to the positive side of the main left-right axis
(the first right singular vector of all differences between a pose and its mirror image).

References:
    Rousseeuw 1987, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis".
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from tasks.common.skeleton import embed, face_forward, mirror
from tasks.common.subset import evenly_spaced

MOST = 16  # clusters that are tried
LEAST_MEMBERS = 10  # on average, in a cluster
_COMPARED = 1000  # points whose silhouettes are averaged


@dataclass(frozen=True)
class Clusters:
    """Pose clusters: enough to say of any pose which it belongs to."""

    axis: np.ndarray  # float32 [51]: the main left-right axis
    centroids: np.ndarray  # float32 [k, 51]
    silhouettes: dict[int, float]  # number of clusters tried -> mean silhouette, -1..1

    def assign(self, poses: np.ndarray) -> np.ndarray:
        """The nearest cluster of each normalised pose `[n, 33, 3]`, int32 `[n]`."""
        return _assign(points(poses, self.axis), self.centroids)


def name(cluster: int) -> str:
    """The category that a row without a label gets."""
    return f"pose-{cluster:02d}"


def left_right_axis(poses: np.ndarray) -> np.ndarray:
    """The unit direction, float32 `[51]`, along which poses `[n, 33, 3]` and their mirror images differ most."""
    forward = face_forward(poses)
    difference = embed(forward) - embed(mirror(forward))
    axis = np.linalg.svd(difference, full_matrices=False)[2][0]
    return axis * np.sign(axis[np.abs(axis).argmax()])


def points(poses: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Poses `[n, 33, 3]` as points float32 `[n, 51]`, the same for a pose turned about the vertical or mirrored."""
    forward = face_forward(poses)
    as_is, reflected = embed(forward), embed(mirror(forward))
    return np.where(((as_is - reflected) @ axis < 0)[:, None], reflected, as_is)


def fit(poses: np.ndarray) -> Clusters:
    """Clusters of normalised poses `[n, 33, 3]`; the number of clusters with the largest mean silhouette, the largest
    cluster first. One cluster where there are fewer than 2 * LEAST_MEMBERS poses."""
    axis = left_right_axis(poses)
    x = points(poses, axis)
    compared = x[evenly_spaced(len(x), _COMPARED)]
    square = np.square(compared).sum(axis=1)
    distance = np.sqrt(np.maximum(square[:, None] + square - 2 * compared @ compared.T, 0))
    tried: dict[int, np.ndarray] = {}
    silhouettes: dict[int, float] = {}
    for k in range(2, min(MOST, len(x) // LEAST_MEMBERS) + 1):
        tried[k] = _centroids(x, k)
        silhouettes[k] = silhouette(distance, _assign(compared, tried[k]))
    if not tried:
        return Clusters(axis, x.mean(axis=0, keepdims=True), {})
    centroids = tried[max(silhouettes, key=lambda k: (silhouettes[k], -k))]
    sizes = np.bincount(_assign(x, centroids), minlength=len(centroids))
    return Clusters(axis, centroids[np.argsort(-sizes, kind="stable")], silhouettes)


def silhouette(distance: np.ndarray, labels: np.ndarray) -> float:
    """Mean over all points of (b - a) / max(a, b), with a the mean distance `[n, n]` to the other points of its cluster
    and b the least mean distance to another cluster; 0 for a point that is alone, as for a single cluster."""
    members = np.eye(labels.max() + 1)[:, labels]  # [k, n]
    members = members[members.any(axis=1)]
    if len(members) < 2:
        return 0.0
    sizes = members.sum(axis=1)
    total = members @ distance  # [k, n]
    own = members.argmax(axis=0)
    column = np.arange(len(labels))
    a = total[own, column] / np.maximum(sizes[own] - 1, 1)
    mean = total / sizes[:, None]
    mean[own, column] = np.inf
    b = mean.min(axis=0)
    score = (b - a) / np.maximum(np.maximum(a, b), 1e-12)
    return float(np.where(sizes[own] > 1, score, 0).mean())


def _centroids(x: np.ndarray, k: int) -> np.ndarray:
    means = faiss.Kmeans(
        x.shape[1], k, niter=25, nredo=3, seed=1, min_points_per_centroid=1, max_points_per_centroid=1024
    )
    means.train(x)
    return np.asarray(means.centroids)


def _assign(x: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    return index.search(np.ascontiguousarray(x), 1)[1].ravel().astype(np.int32)
