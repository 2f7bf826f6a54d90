"""Which rows show the same thing: the same picture, or the same person in a part of it.

All searches are exact, by FAISS: range searches in perceptual hashes (Hamming distance) and in poses (Euclidean), each
for the rows as they are and for their mirror images. Memory is that of one block of rows against all.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from tasks.common.skeleton import embed, mirror
from tasks.extract.perceptual_hash import LENGTH, bits, cosine, mirrored

# Two pictures are the same if their fingerprints agree this well. Measured (docs/curation.md): copies of any kind but
# crops stay above 0.92, different pictures below 0.88, even figures of one kind in one room.
SAME_PICTURE = 0.9
# Two pictures that agree only this well are the same if their persons also stand the same: crops.
SAME_SCENE = 0.5
# Two poses are the same if their joints are this near (root mean square, torso lengths): above MediaPipe's jitter
# between two files of one picture (median 0.06), below the distance of nearly all figures to their nearest neighbour.
SAME_POSE = 0.1
# At a cosine of 0.9 two hashes differ in 37 of 256 bits or so (arccos(0.9) / pi of them), and never in more than 80.
_SAME_PICTURE_BITS = 80
_BLOCK = 256  # rows searched at once

Pairs = tuple[np.ndarray, np.ndarray]  # rows i, rows j


def same_picture(fingerprints: np.ndarray) -> Iterator[Pairs]:
    """Pairs i < j of fingerprints int8 `[n, 256]` with a cosine of at least SAME_PICTURE, one of them mirrored or none.

    Rows without a picture or with one of a single colour (all zeros) belong to no pair.
    """
    rows = np.flatnonzero(fingerprints.any(axis=1))
    index = faiss.IndexBinaryFlat(LENGTH)
    index.add(bits(fingerprints[rows]))
    for queries in (fingerprints, mirrored(fingerprints)):
        hashes = bits(queries[rows])
        for start in range(0, len(rows), _BLOCK):
            i, j = _ordered(start, index.range_search(hashes[start : start + _BLOCK], _SAME_PICTURE_BITS + 1))
            i, j = rows[i], rows[j]
            same = cosine(queries[i], fingerprints[j]) >= SAME_PICTURE
            yield i[same], j[same]


def same_scene(fingerprints: np.ndarray, poses: np.ndarray) -> Iterator[Pairs]:
    """Pairs i < j in the same pose `[n, 33, 3]` (normalised) in pictures that agree roughly, both mirrored or none."""
    rows = np.flatnonzero(fingerprints.any(axis=1))
    index = faiss.IndexFlatL2(embed(poses[:1]).shape[1])
    index.add(embed(poses[rows]))
    for queries, seen in ((poses, fingerprints), (mirror(poses), mirrored(fingerprints))):
        points = embed(queries[rows])
        for start in range(0, len(rows), _BLOCK):
            i, j = _ordered(start, index.range_search(points[start : start + _BLOCK], SAME_POSE**2))
            i, j = rows[i], rows[j]
            same = cosine(seen[i], fingerprints[j]) >= SAME_SCENE
            yield i[same], j[same]


def _ordered(start: int, found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Pairs:
    """The pairs i < j of a range search whose first query is row `start`."""
    limits, _, j = found
    i = start + np.repeat(np.arange(len(limits) - 1), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64))
    return i[i < j], j[i < j]
