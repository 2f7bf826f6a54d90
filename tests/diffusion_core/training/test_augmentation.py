"""Augmentations and noise on conditions."""

import math

import pytest
import torch

from diffusion_core.schedules import Level, sigma_level
from diffusion_core.training import augmentation
from tasks.common.skeleton import MIRROR


def test_no_transform_is_the_identity_and_a_flip_mirrors():
    x0 = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    same, cond = augmentation.transform_pictures(x0, {}, augmentation.no_transform(3))
    assert torch.equal(same, x0) and not cond["vec:augment"].any()
    flip = augmentation.no_transform(3)
    flip[:, 0] = 1
    torch.testing.assert_close(augmentation.transform_pictures(x0, {}, flip)[0], x0.flip(-1), rtol=0, atol=1e-5)


def test_pictures_are_transformed_as_the_condition_states():
    """A bright dot at (x, y) from the centre moves to scale * rotation (x, y) + shift."""
    size, at = 65, (10.0, -6.0)
    axis = torch.arange(size) - (size - 1) / 2
    dot = torch.exp(-((axis[None] - at[0]) ** 2 + (axis[:, None] - at[1]) ** 2) / 8)[None, None]
    angle = 0.4
    chosen = torch.tensor([[0.0, math.log(1.3), math.cos(angle) - 1, math.sin(angle), 0.05, -0.1]])
    moved = augmentation.transform_pictures(dot, {}, chosen)[0][0, 0]
    centre = ((moved.sum(0) * axis).sum() / moved.sum(), (moved.sum(1) * axis).sum() / moved.sum())
    x = 1.3 * (math.cos(angle) * at[0] - math.sin(angle) * at[1]) + 0.05 * size
    y = 1.3 * (math.sin(angle) * at[0] + math.cos(angle) * at[1]) - 0.1 * size
    assert float(centre[0]) == pytest.approx(x, abs=0.1) and float(centre[1]) == pytest.approx(y, abs=0.1)


def test_flipped_poses_swap_left_and_right():
    x0 = torch.randn(2, 33, 3, generator=torch.Generator().manual_seed(0))
    flip = augmentation.no_transform(2)
    flip[0, 0] = 1
    out, _ = augmentation.transform_poses(x0, {}, flip, MIRROR)
    assert torch.equal(out[1], x0[1])
    left, right = 15, 16  # wrists
    torch.testing.assert_close(out[0, left], x0[0, right] * torch.tensor([-1.0, 1, 1]))
    again, _ = augmentation.transform_poses(out, {}, flip, MIRROR)
    torch.testing.assert_close(again, x0)


def test_rotated_poses_keep_their_bone_lengths():
    x0 = torch.randn(40, 33, 3, generator=torch.Generator().manual_seed(0))
    chosen = augmentation.random_transforms(3, torch.arange(40), 1.0, scale=0.0)
    out, cond = augmentation.transform_poses(x0, {}, chosen, MIRROR)
    mirrored = chosen[:, 0] == 1
    length = (x0[:, 11] - x0[:, 13]).norm(dim=1)
    mirror_length = (x0[:, 12] - x0[:, 14]).norm(dim=1)
    torch.testing.assert_close((out[:, 11] - out[:, 13]).norm(dim=1), torch.where(mirrored, mirror_length, length))
    assert torch.equal(cond["vec:augment"], chosen) and 5 < int(mirrored.sum()) < 35


def test_transforms_are_a_function_of_the_id():
    ids = torch.arange(1000)
    whole = augmentation.random_transforms(1, ids, 0.3)
    assert torch.equal(augmentation.random_transforms(1, ids[40:50], 0.3), whole[40:50])
    assert float((whole[:, 1] != 0).float().mean()) == pytest.approx(0.3, abs=0.05)
    assert float(whole[:, 0].mean()) == pytest.approx(0.15, abs=0.04)


def test_noise_conditioning_adds_its_level_as_condition():
    ids = torch.arange(500)
    cond = {"map:low": torch.ones(500, 3, 4, 4)}
    levels = augmentation.random_levels(lambda u: sigma_level(u), 0, ids)
    out = augmentation.add_condition_noise(cond, "map:low", levels, 1, ids)
    residual = (out["map:low"] - 1).flatten(1).std(1)
    torch.testing.assert_close(torch.tan(out["vec:low_level"][:, 0]), levels.sigma.float())
    assert float((residual / levels.sigma.float()).mean()) == pytest.approx(1, abs=0.05)
    fixed = augmentation.add_condition_noise(cond, "map:low", Level(torch.tensor(1.0), torch.tensor(0.0)), 1, ids)
    assert torch.equal(fixed["map:low"], cond["map:low"]) and not fixed["vec:low_level"].any()
    first = augmentation.add_condition_noise({"tok:low": torch.ones(500, 4, 5)}, "tok:low", levels, 1, ids, features=2)
    assert torch.equal(first["tok:low"][..., 2:], torch.ones(500, 4, 3))
    residual = (first["tok:low"][..., :2] - 1).flatten(1).square().mean(1).sqrt()
    assert float((residual / levels.sigma.float()).mean()) == pytest.approx(1, abs=0.05)
