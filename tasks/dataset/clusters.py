"""Categories for persons without labels: k-means of poses, with the number of clusters chosen by the silhouette.

A category should not depend on the camera's direction or on which leg is in front. So poses are turned to face forward,
and of a pose and its mirror image only one is used: the one on the positive side of the main left-right axis, the first
right singular vector of all differences between a pose and its mirror image.

References:
    Rousseeuw 1987, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis".
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np

from tasks.common.skeleton import embed, face_forward, mirror
from tasks.common.subset import evenly_spaced

MAX_CLUSTERS = 16
MIN_MEMBERS = 10  # of a cluster, on average
_SILHOUETTES = 1000  # points whose silhouettes are averaged


@dataclass(frozen=True)
class Clusters:
    """Pose clusters, to which any pose can be assigned."""

    axis: np.ndarray  # float32 [51]: the main left-right axis
    centroids: np.ndarray  # float32 [k, 51]
    silhouettes: dict[int, float]  # number of clusters -> mean silhouette, -1..1

    def assign(self, poses: np.ndarray) -> np.ndarray:
        """The nearest cluster of each normalised pose `[n, 33, 3]`, int32 `[n]`."""
        return _assign(points(poses, self.axis), self.centroids)


def name(cluster: int) -> str:
    """The category of a row without a label."""
    return f"pose-{cluster:02d}"


def left_right_axis(poses: np.ndarray) -> np.ndarray:
    """The unit direction, float32 `[51]`, along which poses `[n, 33, 3]` and their mirror images differ most."""
    forward = face_forward(poses)
    difference = embed(forward) - embed(mirror(forward))
    axis: np.ndarray = np.linalg.svd(difference, full_matrices=False)[2][0]
    axis = axis * np.sign(axis[np.abs(axis).argmax()])
    return axis


def points(poses: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Poses `[n, 33, 3]` as points float32 `[n, 51]`, invariant to turns about the vertical and to mirroring."""
    forward = face_forward(poses)
    as_is, reflected = embed(forward), embed(mirror(forward))
    return np.where(((as_is - reflected) @ axis < 0)[:, None], reflected, as_is)


def fit(poses: np.ndarray) -> Clusters:
    """Clusters of normalised poses `[n, 33, 3]`, the largest cluster first.

    The number of clusters is the one with the largest mean silhouette; fewer than 2 * MIN_MEMBERS poses are one cluster.
    """
    axis = left_right_axis(poses)
    x = points(poses, axis)
    subset = x[evenly_spaced(len(x), _SILHOUETTES)]
    candidates: dict[int, np.ndarray] = {}
    silhouettes: dict[int, float] = {}
    for k in range(2, min(MAX_CLUSTERS, len(x) // MIN_MEMBERS) + 1):
        candidates[k] = _centroids(x, k)
        silhouettes[k] = _silhouette(subset, _assign(subset, candidates[k]))
    if not candidates:
        return Clusters(axis, x.mean(axis=0, keepdims=True), {})
    centroids = candidates[max(silhouettes, key=lambda k: (silhouettes[k], -k))]
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
