"""The codec of motion: what it does to feet and to single poses, its file, and control through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_core import inverse
from tasks.common import motion
from tasks.config.motion import MotionModel
from tasks.config.sampling import SamplingChoices
from tasks.models import codec as stored
from tasks.models import inputs, modality, motion_control, motion_losses
from tasks.models.motion_codec import FEET, MotionCodec, scaled_features
from tasks.models.motion_control import Plan
from tests.support.workspaces import figure

FRAMES, RATE = 6, 12.0


def _clips(count: int = 20) -> np.ndarray:
    """People who lean forward: the hips move at a speed of their own, the feet stay where they are."""
    rng = np.random.default_rng(0)
    clips = np.stack([np.repeat(figure(rng, 0)[None], FRAMES, axis=0) for _ in range(count)]).astype(np.float64)
    clips[:, :, :27, 2] -= rng.uniform(0.05, 0.2, (count, 1, 1)) * np.arange(FRAMES)[:, None]
    return clips


def _config(**changes: object) -> MotionModel:
    return MotionModel.model_validate({
        "images": 64, "batch": 4, "learning_rate": 1e-3, "warmup_images": 4, "ema_halflife_images": 4,
        "checkpoint_images": 64, "width": 16, "depth": 1, "heads": 2, "sharpening": 5.0, "world_feet": True, **changes,
    })  # fmt: skip


def _codec(config: MotionModel) -> MotionCodec:
    x0 = torch.from_numpy(motion.features(_clips()))
    return MotionCodec.fit(x0, inputs.DATA_SD, config.sharpening, config.world_feet)


@pytest.mark.parametrize("world_feet", [True, False])
def test_feet_that_stand_are_constant_and_everything_comes_back(world_feet: bool) -> None:
    x0 = torch.from_numpy(motion.features(_clips()))
    codec = _codec(_config(world_feet=world_feet))
    z = codec.encode(x0)
    assert float(z.square().mean().sqrt()) == pytest.approx(0.5)
    torch.testing.assert_close(codec.decode(z), x0)
    moves = z[:, :, FEET].diff(dim=1).abs().max()
    assert (moves < 1e-9) == world_feet
    other = stored.from_tensors(stored.tensors(codec), None)
    torch.testing.assert_close(other.encode(x0), z)


def test_single_poses_behind_clips_are_not_sharpened() -> None:
    x0, codec = torch.from_numpy(motion.features(_clips())), _codec(_config())
    poses = torch.from_numpy(motion.features(motion.in_place(_clips())[:, 3]))
    z = torch.cat([codec.encode(x0), codec.encode(poses)[:, None]], 1)
    known = scaled_features(codec, z, FRAMES)
    assert torch.allclose(known.diff(dim=1)[:, : FRAMES - 1] * codec.scale, x0.diff(dim=1))
    same = torch.cat([x0, poses[:, None]], 1)
    assert torch.allclose(known.diff(dim=1) * codec.scale, same.diff(dim=1))


def test_costs_of_velocities_do_not_depend_on_the_codec() -> None:
    real = torch.from_numpy(motion.features(_clips(4)))
    wrong = real + 0.1 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0), dtype=real.dtype)
    codec = _codec(_config())
    plain = motion_losses.term(1.0, 1.0, 1.0, RATE)(wrong, real, {})
    seen = motion_losses.term(1.0, 1.0, float(codec.scale), RATE, lambda z: scaled_features(codec, z))
    assert torch.allclose(seen(codec.encode(wrong), codec.encode(real), {}) * codec.scale**2, plain)


@pytest.mark.parametrize("changes", [{}, {"sharpening": 0.0}, {"world_feet": False}])
def test_what_is_given_is_exact_through_the_codec(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = _config(conditions=["category"], **changes)
    model = modality.build(
        "motion", config, ["lean"], _codec(config), 0.0, clip=modality.ClipShape(FRAMES, RATE)
    )  # fmt: skip
    for parameter in model.denoiser.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model.denoiser.eval().requires_grad_(False)
    clips, ids = _clips(2).astype(np.float32), torch.arange(2)
    plan = Plan(SamplingChoices(steps=3))
    sampled = motion_control.given(model, motion_control.frames_given(clips, [0, 5]), {}, ids, plan)
    assert np.allclose(sampled[:, [0, 5]], clips[:, [0, 5]], atol=1e-5)
    # What the sampler itself knew, before the given numbers were put in their places.
    mask = torch.from_numpy(motion_control.frames_given(clips, [0, 5])[0]).isfinite()
    given = torch.from_numpy(motion.features(clips))
    y = motion_control._units(model, given.double())[:, mask]
    values = motion_control._sampled(model, inverse.inpaint(mask), y, {}, ids, plan)
    assert torch.allclose(values[:, mask].float(), given[:, mask], atol=1e-3)
