"""COCO's keypoint format (cocodataset.org, "Format data"), which tools for training pose estimators read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.common.skeleton import BONES, LANDMARKS

PERSON = 1  # id of the only category
VISIBLE = 2  # labelled and visible; 0: not labelled


def document(names: Sequence[str], keypoints: np.ndarray, size: int, about: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The JSON of square pictures `names` of `size` pixels with one person each.

    `keypoints`: pixels `[n, 33, 2]`; those outside the picture are marked as not labelled. `about`: the `attributes` of each
    annotation.
    """
    images, annotations = [], []
    for number, (name, points, attributes) in enumerate(zip(names, keypoints, about, strict=True), start=1):
        inside = ((points >= 0) & (points < size)).all(axis=1)
        low, high = points.clip(0, size).min(axis=0), points.clip(0, size).max(axis=0)
        flat = [
            value
            for (x, y), is_inside in zip(points.tolist(), inside, strict=True)
            for value in _triple(x, y, is_inside)
        ]
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


def _triple(x: float, y: float, inside: bool) -> list[float]:
    return [round(x, 3), round(y, 3), VISIBLE] if inside else [0, 0, 0]
