"""Inflated picture networks: at the start frames are pictures, and single pictures beside a clip change nothing in it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from diffusion_core import rng
from diffusion_core.conditioning import SEGMENT
from diffusion_core.nets.mlp import MLP
from diffusion_core.nets.video import VideoNet, beside
from tests.support import net_zoo

FRAMES, STILLS, BATCH = 4, 2, 2
NETS = ("patch", "dit", "uvit", "hourglass", "unet", "simple_uvit")


def _call(name: str, frames: int, seed: int = 1) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    kind = net_zoo.KINDS[name]
    x = rng.normal((frames, *kind.shape), seed, torch.arange(BATCH))
    cond = {
        key: rng.normal((frames, *value.shape[1:]), seed + 1, torch.arange(BATCH))
        for key, value in net_zoo.conditions(kind, BATCH).items()
    }
    return x, torch.linspace(-1, 1, BATCH), cond


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_an_inflated_net_is_at_first_the_picture_net_frame_by_frame(name: str, autocast: bool) -> None:
    net = net_zoo.randomised(net_zoo.KINDS[name].make()).float()
    video = VideoNet(copy.deepcopy(net))
    x, c_noise, cond = _call(name, FRAMES)
    flat = {key: value.flatten(0, 1) for key, value in cond.items()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        frames = video(x, c_noise, cond)
        pictures = net(x.flatten(0, 1), c_noise.repeat_interleave(FRAMES), flat)
    assert torch.equal(frames.flatten(0, 1), pictures)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_single_pictures_beside_a_clip_change_no_bit_of_it(name: str, autocast: bool) -> None:
    video = net_zoo.randomised(VideoNet(net_zoo.KINDS[name].make())).float()
    x, c_noise, cond = _call(name, FRAMES + STILLS)
    other, _, other_cond = _call(name, FRAMES + STILLS, seed=7)
    segment = beside(FRAMES, STILLS, BATCH)

    def changed(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first[:, :FRAMES], second[:, FRAMES:]], 1)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = video(x, c_noise, {**cond, SEGMENT: segment})
        mixed = {key: changed(value, other_cond[key]) for key, value in cond.items()}
        z = video(changed(x, other), c_noise, {**mixed, SEGMENT: segment})
        free = video(x, c_noise, cond)
    assert torch.equal(y[:, :FRAMES], z[:, :FRAMES])
    assert not torch.equal(y[:, FRAMES:], z[:, FRAMES:])
    assert not torch.allclose(y[:, :FRAMES], free[:, :FRAMES], atol=1e-3)  # without segments they do see each other


def test_frames_see_each_other_and_a_clip_does_not_see_other_rows() -> None:
    video = net_zoo.randomised(VideoNet(net_zoo.KINDS["patch"].make()))
    x, c_noise, cond = _call("patch", FRAMES)
    x, c_noise, cond = x.double(), c_noise.double(), net_zoo.double(cond)
    moved = x.clone()
    moved[0, 3] += 1
    y, z = video(x, c_noise, cond), video(moved, c_noise, cond)
    assert (y[0] - z[0]).abs().amax((1, 2, 3)).min() > 1e-6
    assert torch.allclose(y[1], z[1])


def test_what_is_given_for_a_clip_holds_for_all_its_frames() -> None:
    video = net_zoo.randomised(VideoNet(net_zoo.KINDS["dit"].make())).float()
    x, c_noise, cond = _call("dit", FRAMES)
    one = {key: value[:, 0] for key, value in cond.items()}
    each = {key: value[:, :1].expand_as(value) for key, value in cond.items()}
    keep = {"keep:vec:pose": torch.tensor([True, False])}
    assert torch.equal(video(x, c_noise, {**one, **keep}), video(x, c_noise, {**each, **keep}))


def test_a_net_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError):
        VideoNet(MLP(6, width=8))
