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
    tried: dict[int, np.ndarray] = {}
    silhouettes: dict[int, float] = {}
    for k in range(2, min(MOST, len(x) // LEAST_MEMBERS) + 1):
        tried[k] = _centroids(x, k)
        silhouettes[k] = _silhouette(compared, _assign(compared, tried[k]))
    if not tried:
        return Clusters(axis, x.mean(axis=0, keepdims=True), {})
    centroids = tried[max(silhouettes, key=lambda k: (silhouettes[k], -k))]
    sizes = np.bincount(_assign(x, centroids), minlength=len(centroids))
    return Clusters(axis, centroids[np.argsort(-sizes, kind="stable")], silhouettes)


def _silhouette(x: np.ndarray, labels: np.ndarray) -> float:
    """The mean silhouette of points `[n, d]` with their clusters; 0 for a single cluster."""
    from sklearn.metrics import silhouette_score  # takes a second to import, and the reports need only `assign`

    return float(silhouette_score(x, labels)) if len(np.unique(labels)) > 1 else 0.0


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
