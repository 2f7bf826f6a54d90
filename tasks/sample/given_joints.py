"""Joints that a request gives, by name."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import AfterValidator

from tasks.common.skeleton import INDEX


def _checked(pose: dict[str, list[float]]) -> dict[str, list[float]]:
    for name, place in pose.items():
        if name not in INDEX:
            raise ValueError(f"there is no joint {name!r}; there are {', '.join(INDEX)}")
        if len(place) != 3 or not np.isfinite(place).all():
            raise ValueError(f"the joint {name!r} needs three finite numbers")
    return pose


# Joint name -> x, y, z (hips at the origin, torso 1 long, y down).
Joints = Annotated[dict[str, list[float]], AfterValidator(_checked)]


def as_tensor(joints: Joints | None) -> torch.Tensor | None:
    """The pose float64 `[33, 3]`, NaN for joints that are not given; None if no joint is given."""
    if not joints:
        return None
    pose = torch.full((len(INDEX), 3), torch.nan, dtype=torch.float64)
    for name, place in joints.items():
        pose[INDEX[name]] = torch.tensor(place, dtype=torch.float64)
    return pose
