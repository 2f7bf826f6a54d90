"""COCO's keypoint format (cocodataset.org, "Format data"): what tools for training pose estimators read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.common.skeleton import BONES, LANDMARKS

PERSON = 1  # the one category
SEEN = 2  # visibility: labelled and visible; 0: outside the picture, not labelled


def document(names: Sequence[str], keypoints: np.ndarray, size: int, about: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of square pictures `names` of `size` pixels with one person each.

    `keypoints`: pixels `[n, 33, 2]`. Those outside the picture are marked as not labelled. `about`: what else is kept with
    each annotation, under `attributes`.
    """
    images, annotations = [], []
    for number, (name, points, attributes) in enumerate(zip(names, keypoints, about, strict=True), start=1):
        inside = ((points >= 0) & (points < size)).all(axis=1)
        low, high = points.clip(0, size).min(axis=0), points.clip(0, size).max(axis=0)
        flat = [value for (x, y), there in zip(points.tolist(), inside, strict=True) for value in _triple(x, y, there)]
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": PERSON,
                "keypoints": flat,
                "num_keypoints": int(inside.sum()),
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "area": float((high - low).prod()),
                "iscrowd": 0,
                "attributes": attributes,
            }
        )
    person = {
        "id": PERSON,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(LANDMARKS),
        "skeleton": [[a + 1, b + 1] for a, b in BONES],  # counted from 1
    }
    return {"images": images, "annotations": annotations, "categories": [person]}


def _triple(x: float, y: float, there: bool) -> list[float]:
    return [round(x, 3), round(y, 3), SEEN] if there else [0, 0, 0]
