"""Further costs of motion: wrong velocities, and feet that slide. Tevet et al. 2023 (arXiv 2209.14916), equations 4 and 5.

Their equation 3, the cost of joint positions, is the loss itself here, because the network works on positions. Examples are
clips in the form `tasks.common.motion.features`, in the network's units.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_core.conditioning import SEGMENT, WEIGHT, Cond
from tasks.common import motion
from tasks.models.motion_codec import FEET

STANDS = 0.2  # torso lengths per second: a joint of a foot that moves more slowly in the data stands


def term(
    velocity: float,
    foot_contact: float,
    scale: float,
    rate: float,
    features: Callable[[Tensor], Tensor] = lambda z: z,
) -> Callable[[Tensor, Tensor, Cond], Tensor]:
    """The cost `[B]` of an estimate of clips x0 `[B, frames, 33, 3]`.

    velocity: weight of the mean squared error of the change from frame to frame (eq. 5). foot_contact: weight of the mean
    squared change of the places of FEET from frame to frame where they stand in the data (eq. 4). `scale`: torso lengths in
    a unit of the network; `rate`: frames per second. Changes across the frames of different clips cost nothing, nor does the
    path where it is not known. `features`: from the network's units to those of features, see
    `motion_codec.scaled_features`.
    """

    def cost(estimate: Tensor, x0: Tensor, cond: Cond) -> Tensor:
        steps, true = features(estimate).diff(dim=1), features(x0).diff(dim=1)
        weight = cond[WEIGHT].to(x0)[:, 1:] if WEIGHT in cond else torch.ones_like(true[..., :1])
        if SEGMENT in cond:
            segment = cond[SEGMENT]
            weight = weight * (segment[:, 1:] == segment[:, :-1])[:, :, None, None].to(x0)
        out = x0.new_zeros(len(x0))
        if velocity:
            out = out + velocity * (weight * (steps - true).square()).flatten(1).mean(1)
        if foot_contact:
            stands = (_foot_steps(true).norm(dim=-1, keepdim=True) * scale * rate < STANDS).to(x0)
            known = weight[:, :, [motion.PATH]]
            out = out + foot_contact * (known * stands * _foot_steps(steps).square()).flatten(1).mean(1)
        return out

    return cost


def _foot_steps(steps: Tensor) -> Tensor:
    """How far the joints FEET move in the world from frame to frame, `[B, frames - 1, 6, 3]`, in the network's units."""
    return steps[:, :, FEET] + steps[:, :, [motion.PATH]] / motion.PATH_SCALE
