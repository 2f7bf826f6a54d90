"""Duplicates: rows that show the same picture, or the same person in a part of it.

All searches are exact range searches by FAISS, in perceptual hashes (Hamming distance) and in poses (Euclidean
distance), for the rows and for their mirror images. Memory holds one block of rows against all rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from tasks.common.skeleton import embed, mirror
from tasks.extract.perceptual_hash import LENGTH, bits, cosine, mirrored

# Cosine of two fingerprints from which on two pictures are the same. Measured (docs/curation.md): copies of any kind but
# crops stay above 0.92, different pictures below 0.88, even figures of one kind in one room.
SAME_PICTURE = 0.9
# Cosine from which on two pictures are the same if their persons also have the same pose: crops.
SAME_SCENE = 0.5
# Distance up to which two poses are the same (root mean square over joints, torso lengths). It is above MediaPipe's jitter
# between two files of one picture (median 0.06) and below the distance of nearly all figures to their nearest neighbour.
SAME_POSE = 0.1
# At a cosine of 0.9 two hashes differ in about 37 of 256 bits (arccos(0.9) / pi of them), and never in more than 80.
_SAME_PICTURE_BITS = 80
_BLOCK = 256  # rows searched at once

Pairs = tuple[np.ndarray, np.ndarray]  # rows i, rows j


def same_picture(fingerprints: np.ndarray) -> Iterator[Pairs]:
    """Pairs i < j of fingerprints int8 `[n, 256]` with a cosine of at least SAME_PICTURE, as they are or one mirrored.

    Rows without a picture, or with a picture of a single colour (all zeros), are in no pair.
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
    """Pairs i < j of rows with the same normalised pose `[n, 33, 3]` in similar pictures.

    Pose and picture of a row are compared as they are or both mirrored.
    """
    rows = np.flatnonzero(fingerprints.any(axis=1))
    index = faiss.IndexFlatL2(embed(poses[:1]).shape[1])
    index.add(embed(poses[rows]))
    for queries, query_fingerprints in ((poses, fingerprints), (mirror(poses), mirrored(fingerprints))):
        points = embed(queries[rows])
        for start in range(0, len(rows), _BLOCK):
            i, j = _ordered(start, index.range_search(points[start : start + _BLOCK], SAME_POSE**2))
            i, j = rows[i], rows[j]
            same = cosine(query_fingerprints[i], fingerprints[j]) >= SAME_SCENE
            yield i[same], j[same]


def _ordered(start: int, result: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Pairs:
    """The pairs i < j of a range search whose first query is row `start`."""
    limits, _, j = result
    i = start + np.repeat(np.arange(len(limits) - 1), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64))
    return i[i < j], j[i < j]
