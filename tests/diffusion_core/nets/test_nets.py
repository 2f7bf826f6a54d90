"""Properties of every network: conditions, gradients, overfitting, determinism, low precision, cost."""

import pytest
import torch

from diffusion_core import conditioning as conds
from diffusion_core import presets, rng
from diffusion_core.nets.cost import count_parameters, flops
from diffusion_core.nets.dit import DiT
from diffusion_core.nets.mlp import MLP
from diffusion_core.nets.mmdit import MMDiT
from diffusion_core.nets.unet import ResBlock, UNet
from diffusion_core.schedules import Level, sigma_level
from tests.support import net_zoo as zoo
from tests.support.net_zoo import KINDS, Kind

every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@every
def test_output_starts_as_zero_with_the_input_s_shape(kind: Kind) -> None:
    x, c, cond = zoo.batch(kind, 4)
    y = kind.make()(x, c, cond)
    assert y.shape == x.shape
    assert not y.any()


@every
def test_every_condition_changes_the_output_and_can_be_withheld_by_row(kind: Kind) -> None:
    net = zoo.randomised(kind.make())
    x, c, cond = zoo.batch(kind, 4)
    x, c, cond = x.double(), c.double(), zoo.double(cond)
    full = net(x, c, cond)
    keep = torch.tensor([True, False, True, False])
    for key in kind.widths:
        absent = net(x, c, conds.without(cond, key))
        assert ((absent - full).abs().flatten(1).max(1).values > 1e-5).all(), key
        mixed = net(x, c, {**cond, f"keep:{key}": keep})
        torch.testing.assert_close(mixed[keep], full[keep])
        torch.testing.assert_close(mixed[~keep], absent[~keep])


@every
def test_rows_are_independent_and_every_parameter_gets_a_gradient(kind: Kind) -> None:
    net = zoo.randomised(kind.make())
    x, c, cond = zoo.batch(kind, 3)
    x, c, cond = x.double(), c.double(), zoo.double(cond)
    y = net(x, c, cond)
    torch.testing.assert_close(net(x[1:2], c[1:2], conds.rows(cond, slice(1, 2))), y[1:2])
    dropped = {**cond, **{f"keep:{key}": torch.tensor([True, False, True]) for key in kind.widths}}
    net(x, c, dropped).square().sum().backward()
    for name, value in net.named_parameters():
        assert not value.requires_grad or (value.grad is not None and value.grad.abs().max() > 0), name


@every
def test_the_order_of_context_tokens_does_not_matter(kind: Kind) -> None:
    if "tok:words" not in kind.widths:
        pytest.skip("takes no context tokens")
    net = zoo.randomised(kind.make())
    x, c, cond = zoo.batch(kind, 2)
    x, c, cond = x.double(), c.double(), zoo.double(cond)
    rolled = {**cond, "tok:words": cond["tok:words"].roll(1, 1)}
    torch.testing.assert_close(net(x, c, rolled), net(x, c, cond))


@every
def test_overfits_one_batch_deterministically(kind: Kind) -> None:
    def run(steps: int) -> tuple[list[float], torch.nn.Module]:
        torch.manual_seed(0)
        net = kind.make()
        return zoo.fit(net, kind, steps), net

    losses, net = run(40)
    assert losses[-1] < 0.5 * losses[0], losses
    assert all(p.grad is not None and p.grad.any() for p in net.parameters() if p.requires_grad and p.grad is not None)
    assert run(3)[0] == losses[:3]


@every
def test_bfloat16_learns_like_float32(kind: Kind) -> None:
    torch.manual_seed(0)
    plain = zoo.fit(kind.make(), kind, 6, rate=3e-3)
    torch.manual_seed(0)
    low = zoo.fit(kind.make(), kind, 6, rate=3e-3, autocast=True)
    assert low == pytest.approx(plain, rel=0.03)
    assert low[-1] < low[0]


def test_construction_refuses_unsupported_conditions_and_sizes() -> None:
    with pytest.raises(ValueError, match=r"the MLP takes vec:\*, map:\* conditions, not tok:words"):
        MLP(3, conds={"tok:words": 4})
    with pytest.raises(ValueError, match=r"the U-Net takes .* conditions, not pose"):
        UNet(8, width=16, conds={"pose": 4})
    with pytest.raises(ValueError, match=r"MM-DiT needs a tok:\* condition"):
        MMDiT(8, 2, width=16, heads=2, conds={"vec:category": 2})
    with pytest.raises(ValueError, match="multiple of 4, got 6"):
        DiT(8, 2, width=12, heads=2)
    with pytest.raises(ValueError, match="does not divide into patches of 3"):
        DiT(8, 3, width=16, heads=2)


def test_cost_of_a_transformer_matches_the_formula_in_its_docstring() -> None:
    width, depth, side, batch = 32, 3, 4, 2
    net = DiT(16, 4, width=width, depth=depth, heads=2)
    n = side**2
    layer = depth * (12 * width**2 + 2 * n * width) * n  # multiply-adds an image
    modulation = depth * 6 * width**2 + 2 * width**2 + 2 * width**2  # blocks, head, embedding
    ends = 2 * n * 3 * 4**2 * width
    assert flops(net, torch.zeros(batch, 3, 16, 16), torch.zeros(batch)) == 2 * batch * (layer + modulation + ends)
    assert count_parameters(net.blocks) == depth * (18 * width**2 + (6 + 4 + 4 + 1) * width)


def test_cost_of_a_u_net_is_that_of_its_convolutions() -> None:
    net = UNet(64, width=16, depth=1, conds={"map:low": 2})
    blocks = [block for block in [*net.down, *net.middle, *net.up] if isinstance(block, ResBlock)]
    for block in blocks:
        block.attention = None
    products = 64**2 * 9 * (5 * 16 + 16 * 3)  # the first and the last layer
    wide = {64: 16, 32: 32, 16: 48, 8: 64}

    def res_block(inp: int, out: int) -> int:  # two convolutions, and a 1 x 1 convolution on the skip connection
        return 9 * (inp * out + out * out) + (inp * out if inp != out else 0)

    for side, c in wide.items():
        above = max(c - 16, 16)
        products += side**2 * (res_block(c, c) + 2 * res_block(2 * c, c))
        if side < 64:
            products += side**2 * 9 * above * c + (2 * side) ** 2 * 9 * c * above  # downsampling, upsampling
    products += 8**2 * 2 * res_block(64, 64)
    linear = 2 * 64 * 64 + sum(64 * 2 * block.conv1.out_channels for block in blocks)  # modulation and its embedding
    assert flops(net, torch.zeros(1, 3, 64, 64), torch.zeros(1)) == 2 * (products + linear)


def test_denoiser_output_depends_on_each_row_s_level() -> None:
    kind = KINDS["pose"]
    denoiser = presets.edm(0.5).denoiser(zoo.randomised(kind.make()))
    x = torch.randn(2, *kind.shape, dtype=torch.float64)
    one = denoiser(x, sigma_level(torch.tensor([0.5, 2.0]).double()))
    torch.testing.assert_close(one[:1], denoiser(x[:1], sigma_level(torch.tensor(0.5).double())))
    assert not torch.allclose(one[1:], denoiser(x[1:], sigma_level(torch.tensor(0.5).double())))


def test_denoiser_runs_a_bfloat16_net_on_float64_input() -> None:
    denoiser = presets.edm(0.5).denoiser(MLP(3, width=16).bfloat16())
    x = torch.randn(2, 3, dtype=torch.float64)
    assert denoiser(x, sigma_level(torch.tensor(0.5))).dtype == torch.float64


@pytest.mark.parametrize("name", ["edm", "rectified_flow", "ddpm"])
def test_denoisers_are_homogeneous(name: str) -> None:
    denoiser = getattr(presets, name)(0.7).denoiser(zoo.randomised(MLP(3, width=16)))
    level = Level(torch.tensor(0.6).double(), torch.tensor(0.9).double())
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(5 * x, Level(5 * level.a, 5 * level.s)), denoiser(x, level))


def test_drop_withholds_rows_with_probability_p_as_a_function_of_their_id() -> None:
    cond = {"vec:a": torch.randn(5000, 2), "vec:b": torch.randn(5000, 1)}
    ids = torch.arange(5000)
    out = conds.drop(cond, 0.25, 0, ids)
    assert torch.equal(out["keep:vec:a"], out["keep:vec:b"])
    assert abs(float((~out["keep:vec:a"]).float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 5000) ** 0.5
    subset = conds.drop(conds.rows(cond, slice(10, 20)), 0.25, 0, ids[10:20])
    assert torch.equal(subset["keep:vec:a"], out["keep:vec:a"][10:20])
    assert conds.keys(out) == ["vec:a", "vec:b"] and conds.without(out) == {}
    assert set(conds.without(out, "vec:a")) == {"vec:b", "keep:vec:b"}


def test_drop_can_withhold_single_conditions() -> None:
    cond = {"vec:a": torch.randn(5000, 2), "tok:b": torch.randn(5000, 1, 3)}
    out = conds.drop(cond, 0.1, 0, torch.arange(5000), each=0.2)
    a, b = ~out["keep:vec:a"], ~out["keep:tok:b"]
    spread = 4 * (0.25 / 5000) ** 0.5
    assert abs(float((a & b).float().mean()) - (0.1 + 0.9 * 0.04)) < spread
    assert abs(float((a & ~b).float().mean()) - 0.9 * 0.16) < spread
    assert abs(float((b & ~a).float().mean()) - 0.9 * 0.16) < spread
    together = conds.drop(cond, 0.1, 0, torch.arange(5000))
    assert not (together["keep:vec:a"] < out["keep:vec:a"]).any()  # `each` only withholds more


def test_augmentation_noise_level_and_mask_are_never_withheld() -> None:
    described = {
        "vec:augment": torch.ones(8, 6),
        "vec:a_level": torch.ones(8, 1),
        "mask:x": torch.ones(8, 5, dtype=torch.bool),
    }
    cond = {"vec:a": torch.zeros(8, 2), **described}
    out = conds.drop(cond, 0.9, 0, torch.arange(8), each=0.9)
    assert set(out) == {*cond, "keep:vec:a"}
    assert set(conds.without(out)) == set(described)
    assert rng.fold(0, 1) != rng.fold(0)
