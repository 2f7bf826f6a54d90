"""Duplicates: rows that show the same picture, re-encoded, resized or mirrored.

The search is an exact range search by FAISS in perceptual hashes (Hamming distance), for the rows and for their mirror
images. Memory holds one block of rows against all rows. Pictures that were cropped, turned or recoloured are found by
`near_duplicates`.
"""

from __future__ import annotations

from collections.abc import Iterator

import faiss
import numpy as np

from tasks.extract.perceptual_hash import LENGTH, bits, cosine, mirrored

# Cosine of two fingerprints from which on two pictures are the same. Measured (docs/curation.md): copies of any kind but
# crops stay above 0.92, different pictures below 0.88, even figures of one kind in one room.
SAME_PICTURE = 0.9
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


def _ordered(start: int, result: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Pairs:
    """The pairs i < j of a range search whose first query is row `start`."""
    limits, _, j = result
    i = start + np.repeat(np.arange(len(limits) - 1), limits[1:].astype(np.int64) - limits[:-1].astype(np.int64))
    return i[i < j], j[i < j]
