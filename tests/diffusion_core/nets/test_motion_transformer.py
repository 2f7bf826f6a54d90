"""The motion transformer: stills and clips do not know of each other, positions in time are relative, parts are tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion_core import presets, rng
from diffusion_core.conditioning import drop, keys, without
from diffusion_core.nets.attention import apply_rotary
from diffusion_core.nets.motion_transformer import MotionTransformer, rotary_line
from diffusion_core.nets.pose_transformer import PoseTransformer
from diffusion_core.training.trainer import TrainConfig, Trainer
from tests.support import net_zoo as zoo
from tests.support.net_zoo import EDGES

FRAMES, STILLS = 6, 3
SEGMENT = torch.tensor([0] * FRAMES + list(range(1, STILLS + 1)))


def _net(parts: list[list[int]] | None = None, **conds: int) -> MotionTransformer:
    torch.manual_seed(0)
    widths = {f"{key[:3]}:{key[4:]}": width for key, width in conds.items()}
    net = zoo.randomised(MotionTransformer(5, EDGES, parts, width=16, depth=2, heads=2, conds=widths)).float()
    assert isinstance(net, MotionTransformer)
    return net


def _batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    return rng.normal((FRAMES + STILLS, 5, 3), 1, torch.arange(rows)), torch.linspace(-1, 1, rows)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.no_grad()
def test_changing_one_still_changes_no_other_output_by_a_bit(precision: str) -> None:
    net = _net([[0, 1], [2], [3, 4]], vec_category=3)
    x, c = _batch()
    cond = {"segment:x": SEGMENT.expand(4, -1), "vec:category": rng.normal((FRAMES + STILLS, 3), 2, torch.arange(4))}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        y = net(x, c, cond)
        for still in range(FRAMES, FRAMES + STILLS):
            moved, other = x.clone(), cond["vec:category"].clone()
            moved[:, still] += torch.randn(4, 5, 3) * 10
            other[:, still] += 1
            z = net(moved, c, {**cond, "vec:category": other})
            apart = [i for i in range(FRAMES + STILLS) if i != still]
            assert torch.equal(z[:, apart], y[:, apart])
            assert not torch.equal(z[:, still], y[:, still])


@torch.no_grad()
def test_a_clip_does_not_depend_on_the_stills_beside_it_and_stills_not_on_the_clip() -> None:
    net = _net()
    x, c = _batch()
    cond = {"segment:x": SEGMENT.expand(4, -1)}
    y = net(x, c, cond)
    other = x.clone()
    other[:, FRAMES:] = torch.randn(4, STILLS, 5, 3)
    assert torch.equal(net(other, c, cond)[:, :FRAMES], y[:, :FRAMES])
    other = x.clone()
    other[:, 2] += 1
    changed = (net(other, c, cond) != y).flatten(2).any(2)
    assert changed[:, :FRAMES].all() and not changed[:, FRAMES:].any()


@torch.no_grad()
def test_a_clip_beside_stills_is_the_clip_alone_and_a_still_is_a_clip_of_one_frame() -> None:
    net = _net().double()
    x, c = _batch()
    x, c = x.double(), c.double()
    y = net(x, c, {"segment:x": SEGMENT.expand(4, -1)})
    torch.testing.assert_close(y[:, :FRAMES], net(x[:, :FRAMES], c, {}))
    torch.testing.assert_close(y[:, -1:], net(x[:, -1:], c, {}))
    assert not torch.allclose(net(x, c, {}), y)


@torch.no_grad()
def test_two_clips_in_one_row_are_as_in_two_rows() -> None:
    net = _net().double()
    x, c = _batch(2)
    x, c = x.double(), c.double()
    both = torch.cat([x[:1], x[1:]], 1)
    segment = torch.tensor([[0] * 9 + [1] * 9])
    y = net(both, c[:1], {"segment:x": segment})
    # Positions are relative, so the place does not matter; their sines are in single precision.
    torch.testing.assert_close(y[:, 9:], net(x[1:], c[:1], {}), rtol=1e-4, atol=1e-5)


def test_rotary_scores_depend_on_the_difference_of_times() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    rotary = tuple(t.double() for t in rotary_line(7, 8, torch.device("cpu")))
    turned_q, turned_k = (apply_rotary(t.expand(1, 1, 7, 8), (rotary[0], rotary[1])) for t in (q, k))
    scores = (turned_q @ turned_k.mT)[0, 0]
    torch.testing.assert_close(scores[:-1, :-1], scores[1:, 1:], rtol=1e-5, atol=1e-6)
    assert (scores[0, 1:] - scores[0, 0]).abs().min() > 1e-6


@torch.no_grad()
def test_order_in_time_matters() -> None:
    net = _net().double()
    x, c = _batch()
    x, c = x.double(), c.double()
    assert not torch.allclose(net(x.flip(1), c, {}).flip(1), net(x, c, {}))


@torch.no_grad()
def test_with_single_joints_and_frames_it_costs_what_it_says_and_has_a_token_for_each_joint() -> None:
    net, pose = _net(), PoseTransformer(5, EDGES, width=16, depth=2, heads=2)
    assert torch.equal(net.distances, pose.distances) and net.tokens == 5
    block = sum(p.numel() for p in net.blocks[0].parameters() if p.ndim == 2)
    assert block == 25 * 16**2
    parts = _net([[0, 1], [2, 3], [4]])
    assert parts.distances.tolist() == [[0, 1, 1], [1, 0, 2], [1, 2, 0]]


def test_parts_must_divide_the_joints() -> None:
    with pytest.raises(ValueError, match="divide"):
        MotionTransformer(5, EDGES, [[0, 1], [1, 2, 3, 4]], width=16, depth=1, heads=2)


def test_segments_are_never_withheld() -> None:
    cond = {"segment:x": SEGMENT.expand(2, -1), "vec:category": torch.ones(2, 3)}
    assert keys(cond) == ["vec:category"]
    assert set(without(cond)) == {"segment:x"}
    assert "keep:segment:x" not in drop(cond, 0.9, 0, torch.arange(2))


def test_training_on_clips_and_stills_lowers_the_loss_of_both() -> None:
    recipe = presets.edm(0.5)
    torch.manual_seed(0)
    net = MotionTransformer(5, EDGES, [[0, 1, 2], [3, 4]], width=16, depth=1, heads=2)
    clips = 0.5 * torch.ones(16, FRAMES, 5, 3)
    both = torch.cat([clips, -clips[:, :STILLS]], 1)
    config = TrainConfig(images=16 * 60, batch=16, learning_rate=1e-2, warmup_images=32, ema_halflife_images=320)
    cond = {"segment:x": SEGMENT.expand(16, -1)}
    trainer = Trainer(
        recipe.denoiser(net), recipe, config, lambda i: (both[i], {k: v[i] for k, v in cond.items()}), len(both)
    )
    losses = [trainer.step().loss for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
