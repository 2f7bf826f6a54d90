"""Properties of single networks: positions, skeleton, windows, magnitudes, latents."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffusion_core import rng
from diffusion_core.nets.attention import CrossAttention, WindowAttention, apply_rotary, rotary_embedding
from diffusion_core.nets.edm2_unet import EDM2UNet, MPAttention, MPBlock
from diffusion_core.nets.efficient_unet import EfficientUNet
from diffusion_core.nets.layers import FeedForward
from diffusion_core.nets.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise
from diffusion_core.nets.pose_transformer import PoseTransformer, graph_distances
from diffusion_core.nets.rin import RIN, RINBlock
from diffusion_core.nets.unet import ResBlock, UNet
from tests.support import net_zoo as zoo
from tests.support.net_zoo import EDGES, KINDS


def _pose(joints: int, edges: list[tuple[int, int]]) -> PoseTransformer:
    torch.manual_seed(0)
    net = PoseTransformer(joints, edges, width=16, depth=2, heads=2)
    return zoo.randomised(net)


def test_graph_distances() -> None:
    distances = graph_distances(6, EDGES)  # joint 5 has no bone
    assert distances[3].tolist() == [3, 2, 1, 0, 4, 5]
    assert torch.equal(distances, distances.T)


def test_skeleton_biases_attention() -> None:
    net = _pose(5, EDGES)
    x = torch.randn(1, 5, 3, dtype=torch.float64)
    c = torch.zeros(1, dtype=torch.float64)
    before = net(x, c, {})
    with torch.no_grad():
        net.bias[:, :, 1:] = -1e9  # every joint attends to itself only
    moved = x.clone()
    moved[0, 4] += 1
    alone = net(x, c, {})
    changed = (net(moved, c, {}) - alone).abs().amax(-1)[0] > 1e-9
    assert changed.tolist() == [False, False, False, False, True]
    assert not torch.allclose(before, alone)


def test_permuting_the_joints_permutes_the_output() -> None:
    net = _pose(5, EDGES)
    new = torch.tensor([3, 0, 4, 1, 2])  # joint new[i] of the old pose is joint i of the new one
    place = new.argsort()
    other = _pose(5, [(int(place[a]), int(place[b])) for a, b in EDGES])
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        other.joint_position.copy_(net.joint_position[new])
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    c = torch.linspace(-1, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(other(x[:, new], c, {}), net(x, c, {})[:, new])


def test_masked_joints_do_not_affect_the_others() -> None:
    net = _pose(5, EDGES)
    x = torch.randn(3, 5, 3, dtype=torch.float64)
    c = torch.linspace(-1, 1, 3, dtype=torch.float64)
    present = torch.ones(3, 5, dtype=torch.bool)
    torch.testing.assert_close(net(x, c, {"mask:x": present}), net(x, c, {}))
    present[1, 3] = present[2, 0] = False
    y = net(x, c, {"mask:x": present})
    moved = x.clone()
    moved[1, 3] += 100
    moved[2, 0] -= 100
    torch.testing.assert_close(net(moved, c, {"mask:x": present}), y)
    assert not y[1, 3].any() and not y[2, 0].any()
    assert not torch.allclose(y[1, :3], net(x, c, {})[1, :3])


def test_padding_a_skeleton_changes_nothing() -> None:
    small, large = _pose(5, EDGES), _pose(7, [*EDGES, (4, 5), (5, 6)])
    weights = {key: value for key, value in small.state_dict().items() if key not in ("joint_position", "bias")}
    large.load_state_dict(weights, strict=False)
    with torch.no_grad():
        large.joint_position[:5] = small.joint_position
        large.bias[:, :, : small.bias.shape[2]] = small.bias
    x = torch.randn(2, 7, 3, dtype=torch.float64)
    c = torch.linspace(-1, 1, 2, dtype=torch.float64)
    present = (torch.arange(7) < 5).expand(2, 7)
    torch.testing.assert_close(large(x, c, {"mask:x": present})[:, :5], small(x[:, :5], c, {}))


def test_rotary_scores_depend_only_on_the_difference_of_positions() -> None:
    side, width = 6, 16
    q, k = torch.randn(2, 1, 1, 1, width, dtype=torch.float64)
    rotary = rotary_embedding(side, width).double()
    at_all_positions = [apply_rotary(t.expand(1, 1, side**2, width), (rotary[0], rotary[1])) for t in (q, k)]
    scores = (at_all_positions[0] @ at_all_positions[1].mT)[0, 0].reshape(side, side, side, side)
    torch.testing.assert_close(scores[:-1, :-2, :-1, :-2], scores[1:, 2:, 1:, 2:], rtol=1e-4, atol=1e-5)
    assert (scores[0, 0] - scores[0, 0, 0, 0]).abs().flatten()[
        1:
    ].min() > 1e-6  # different offsets give different scores
    torch.testing.assert_close(
        at_all_positions[0].norm(dim=-1), q.norm(dim=-1).expand(1, 1, side**2), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("shifted", [False, True])
def test_windows_are_separate_and_do_not_wrap_around(shifted: bool) -> None:
    side, window = 8, 4
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, side, window, shifted).double()
    x = torch.randn(1, side**2, 8, dtype=torch.float64)
    moved = x.clone()
    moved[0, 0] += 1  # the corner at the top left
    changed = ((layer(moved) - layer(x)).abs().amax(-1)[0] > 1e-9).reshape(side, side)
    reach = window // 2 if shifted else window
    expected = torch.zeros(side, side, dtype=torch.bool)
    expected[:reach, :reach] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_magnitude_preserving_layers_preserve_magnitude() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 48, 8, 8)
    layer = MPConv(48, 32, 3)
    interior = layer(x)[:, :, 1:-1, 1:-1]  # the border sees the zeros of the padding
    assert float(interior.square().mean().sqrt()) == pytest.approx(1, abs=0.05)
    assert float(MPConv(48, 64)(x[..., 0, 0]).square().mean().sqrt()) == pytest.approx(1, abs=0.06)
    assert float(mp_silu(x).square().mean().sqrt()) == pytest.approx(1, abs=0.02)
    y = torch.randn(64, 16, 8, 8)
    for share in (0.3, 0.5, 0.9):
        assert float(mp_sum(x, torch.randn_like(x), share).square().mean().sqrt()) == pytest.approx(1, abs=0.02)
        both = mp_cat(x, y, share)
        assert float(both.square().mean().sqrt()) == pytest.approx(1, abs=0.02)
        powers = both[:, :48].square().sum(1).mean(), both[:, 48:].square().sum(1).mean()
        assert math.sqrt(float(powers[1] / powers[0])) == pytest.approx(share / (1 - share), rel=0.03)
    c = torch.linspace(-1.5, 1.5, 7)
    assert MPFourier(512)(c).square().mean(1).sqrt().tolist() == pytest.approx([1] * 7, abs=0.05)
    assert normalise(5 * x).square().mean((1, 2, 3)).tolist() == pytest.approx([1] * 64, abs=1e-3)


def test_the_norm_of_a_weight_has_no_effect_and_is_reset() -> None:
    kind = KINDS["edm2"]
    torch.manual_seed(0)
    net = kind.make()
    zoo.fit(net, kind, 5, rate=0.05)
    layers = [layer for layer in net.modules() if isinstance(layer, MPConv)]
    x, c, cond = zoo.batch(kind, 2)
    net.eval()
    before = net(x, c, cond)
    with torch.no_grad():
        for layer in layers:
            layer.weight *= 3
    torch.testing.assert_close(net(x, c, cond), before, rtol=1e-3, atol=1e-4)
    net.train()
    net(x, c, cond)
    for layer in layers:
        sizes = layer.weight.flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(sizes, torch.ones_like(sizes), rtol=1e-3, atol=1e-3)


def test_activations_of_edm2_keep_magnitude_one() -> None:
    torch.manual_seed(0)
    net = EDM2UNet(16, width=32, depth=2)
    sizes: list[float] = []
    for block in [*net.down, *net.middle, *net.up]:
        block.register_forward_hook(lambda m, i, out: sizes.append(float(out.detach().square().mean().sqrt())))
    net(torch.randn(8, 3, 16, 16), torch.linspace(-1, 1, 8), {})
    assert len(sizes) == len(net.down) + len(net.middle) + len(net.up)
    assert 0.6 < min(sizes) and max(sizes) < 1.4, sizes


@torch.no_grad()
def test_edm2_blocks_and_attention_add_their_branch_with_the_share_of_the_paper() -> None:
    """Branches are independent of random input, so a regression of output on input gives 0.7 / sqrt(0.7^2 + 0.3^2)."""
    torch.manual_seed(0)
    x = torch.randn(16, 64, 8, 8)
    block = MPBlock(64, 64, 32, 0.0, None, False, 0, None)
    for y in (block(x, torch.randn(16, 32), None), MPAttention(64, 2)(x)):
        share = float((x * y).mean() / x.square().mean())
        assert share == pytest.approx(0.7 / math.hypot(0.7, 0.3), abs=0.02)


def _attention(
    x: Tensor, context: Tensor, query: nn.Linear, key_value: nn.Linear, out: nn.Linear, heads: int
) -> Tensor:
    """Cross-attention head by head, without a mask."""
    q, (k, v) = query(x), key_value(context).chunk(2, -1)
    width = q.shape[-1] // heads
    heard = []
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        scores = torch.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / math.sqrt(width)
        heard.append(torch.einsum("bnm,bmd->bnd", scores.softmax(-1), v[..., part]))
    result: Tensor = out(torch.cat(heard, -1))
    return result


@torch.no_grad()
def test_a_rin_block_reads_processes_and_writes() -> None:
    """Against the paper's formulas (arXiv 2212.11972, figure 3), written out."""
    torch.manual_seed(0)
    width, heads = 16, 2
    block = zoo.randomised(RINBlock(width, heads, 0.0))
    h, latents = torch.randn(2, 10, width // 2).double(), torch.randn(2, 5, width).double()

    def norm(x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:])

    def attend(x: Tensor, context: Tensor, layer: CrossAttention) -> Tensor:
        return _attention(x, context, layer.query, layer.key_value, layer.out, heads)

    def feed_forward(x: Tensor, layer: FeedForward) -> Tensor:
        y: Tensor = layer.contract(nn.functional.gelu(layer.expand(x)))
        return y

    z = latents + attend(norm(latents), norm(h), block.read)
    z = z + feed_forward(norm(z), block.read_feed_forward)
    for layer in block.process:
        z = layer(z)
    written = h + attend(norm(h), norm(z), block.write)
    written = written + feed_forward(norm(written), block.write_feed_forward)
    assert len(block.process) == 4
    for got, expected in zip(block(h, latents, None), (written, z), strict=True):
        torch.testing.assert_close(got, expected)


def test_rin_conditions_are_tokens_beside_the_latents_in_every_block() -> None:
    """The network against its blocks: patches with positions, learned latents and conditions, picture tokens as output."""
    torch.manual_seed(0)
    net = zoo.randomised(RIN(8, 2, width=16, depth=2, heads=2, conds={"vec:category": 3}))
    assert net.latents.shape == (4, 16)  # one for every four of the 16 patches
    x, c = torch.randn(2, 3, 8, 8).double(), torch.tensor([0.3, -1.0]).double()
    cond = {"vec:category": torch.eye(3).double()[:2]}
    tokens = nn.functional.pixel_unshuffle(x, 2).flatten(2).mT
    h, told = net.patch_embed(tokens) + net.position, net.conditions(c, cond)[0]
    z = torch.cat([net.latents.expand(2, -1, -1), told], 1)
    for block in net.blocks:
        h, z = block(h, z, None)
    expected = nn.functional.pixel_shuffle(net.out(net.norm(h)).mT.unflatten(2, (4, 4)), 2)
    torch.testing.assert_close(net(x, c, cond), expected)


def test_second_pass_of_rin_starts_from_the_latents_of_the_first() -> None:
    torch.manual_seed(0)
    net = zoo.randomised(RIN(8, 2, width=16, depth=1, heads=2, latent_self_conditioning=0.5))
    once = zoo.randomised(RIN(8, 2, width=16, depth=1, heads=2))
    once.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("from_first_pass")})
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64)
    c = torch.zeros(64, dtype=torch.float64)
    single, double = once(x, c, {}), net(x, c, {})
    assert ((double - single).abs().flatten(1).max(1).values > 1e-9).all()
    net.train()
    first_only = (net(x, c, {}) - single).abs().flatten(1).max(1).values < 1e-12
    both_passes = (net(x, c, {}) - double).abs().flatten(1).max(1).values < 1e-12
    assert 12 < int(first_only.sum()) < 52 and 12 < int(both_passes.sum()) < 52  # half of the rows each, drawn anew


def _res_blocks(net: UNet) -> list[ResBlock]:
    return [block for block in [*net.down, *net.middle, *net.up] if isinstance(block, ResBlock)]


def test_u_net_has_attention_at_low_resolutions_only() -> None:
    net = UNet(64, width=16, depth=1, heads=2, conds={"tok:words": 4})
    attended = [block.attention for block in _res_blocks(net) if block.attention is not None]
    assert sorted({a.attention.out.in_features for a in attended}) == [48, 64]  # sides 16 and 8
    assert all(a.cross_attention is not None for a in attended)
    assert [a.attention.heads for a in attended if a.attention.out.in_features == 64] == [8] * 4
    with pytest.raises(ValueError, match="27 pixels does not divide"):
        UNet(27, width=16)


def test_an_efficient_u_net_works_at_larger_sizes_and_moves_with_the_picture() -> None:
    net = zoo.randomised(EfficientUNet(32, width=8, depth=1, conds={"map:low": 3, "vec:size": 1}))
    assert isinstance(net, EfficientUNet) and net.stride == 4
    x, low = (rng.normal((3, 80, 80), seed, torch.arange(1)).double() for seed in (0, 1))
    size, level = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def middle(move: int) -> torch.Tensor:
        moved = [value.roll((move, move), (2, 3)) for value in (x, low)]
        y = net(moved[0], level, {"map:low": moved[1], "vec:size": size})
        return y.roll((-move, -move), (2, 3))[..., 39:41, 39:41]

    torch.testing.assert_close(middle(4), middle(0), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(middle(1), middle(0), rtol=1e-3, atol=1e-3)
