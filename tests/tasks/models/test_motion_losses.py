"""Further costs of motion: velocities and sliding feet, against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core.conditioning import SEGMENT, WEIGHT
from tasks.common import motion
from tasks.common.skeleton import INDEX
from tasks.models.motion_codec import FEET
from tasks.models.motion_losses import term
from tests.support.workspaces import figure

RATE, SCALE = 12.0, 2.0
TOE = INDEX["left_foot_index"]


def _standing(frames: int = 6) -> np.ndarray:
    """A person who leans forward: the hips move, the feet stay where they are."""
    clip = np.repeat(figure(np.random.default_rng(0), 0)[None], frames, axis=0).astype(np.float64)
    clip[:, :27, 2] -= 0.1 * np.arange(frames)[:, None]
    return clip


def _units(clip: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(motion.features(clip))[None] / SCALE


def test_feet_that_slide_cost_what_they_move() -> None:
    real, sliding = _standing(), _standing()
    sliding[:, TOE, 0] += 0.3 * np.arange(6)
    cost = term(0.0, 2.0, SCALE, RATE)
    assert cost(_units(real), _units(real), {}) == pytest.approx(0, abs=1e-12)
    expected = 2 * (0.3 / SCALE) ** 2 / (3 * len(FEET))
    assert float(cost(_units(sliding), _units(real), {})) == pytest.approx(expected)
    # In the data this foot moves itself: then it may.
    assert float(cost(_units(real), _units(sliding), {})) == pytest.approx(0, abs=1e-12)
    assert float(cost(_units(sliding), _units(sliding), {})) == pytest.approx(0, abs=1e-12)


def test_wrong_velocities_cost_their_square_and_constant_errors_nothing() -> None:
    real, shifted, faster = _standing(), _standing(), _standing()
    shifted[:, 0] += [1.0, 0.5, 0.0]
    faster[:, 0, 1] += 0.2 * np.arange(6)
    cost = term(3.0, 0.0, SCALE, RATE)
    assert float(cost(_units(shifted), _units(real), {})) == pytest.approx(0, abs=1e-12)
    assert float(cost(_units(faster), _units(real), {})) == pytest.approx(3 * (0.2 / SCALE) ** 2 / 99)


def test_neither_single_poses_nor_an_unknown_path_cost_anything() -> None:
    real, sliding = _units(_standing()), _units(_standing() + 0.3 * np.arange(6)[:, None, None] * [1, 0, 0])
    apart = {SEGMENT: torch.arange(6)[None]}
    both = term(1.0, 1.0, SCALE, RATE)
    assert float(both(sliding, real, {})) > 0
    assert float(both(sliding, real, apart)) == 0
    weight = torch.ones(1, 6, 33, 1)
    weight[:, :, motion.PATH] = 0
    assert float(both(sliding, real, {WEIGHT: weight})) == pytest.approx(0, abs=1e-12)
