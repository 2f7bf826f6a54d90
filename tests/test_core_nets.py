"""The networks: shapes, conditions withheld by row, what starts as zero, the skeleton's bias."""

import pytest
import torch

from diffusion_core import cond as conds
from diffusion_core import presets, rng
from diffusion_core.level import sigma_level
from diffusion_core.nets.mlp import MLP
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.pose_transformer import PoseTransformer, graph_distances

EDGES = [(0, 1), (1, 2), (2, 3), (0, 4)]
WIDTHS = {"vec:category": 4, "vec:pose": 6}


def pose_net():
    return PoseTransformer(5, EDGES, width=16, depth=2, heads=2, conds=WIDTHS), (5, 3), dict(WIDTHS)


def patch_net():
    widths = {**WIDTHS, "map:low": 3, "tok:words": 7}
    return PatchTransformer(8, 4, width=16, depth=2, heads=2, conds=widths), (3, 8, 8), widths


def mlp_net():
    return MLP(6, width=16, conds=WIDTHS), (6,), dict(WIDTHS)


NETS = {"pose": pose_net, "patch": patch_net, "mlp": mlp_net}


def awake(net, seed=0):
    """The net with every parameter random, as zero-initialised layers hide what they gate."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3)
    return net.double().eval()


def conditions(widths, batch):
    out = {}
    for key, wide in widths.items():
        shape = {"vec": (wide,), "map": (wide, 8, 8), "tok": (3, wide)}[key[:3]]
        out[key] = rng.normal(shape, len(key), torch.arange(batch)).double()
    return out


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_starts_as_zero_and_keeps_the_shape(make):
    net, shape, widths = make()
    cond = {key: value.float() for key, value in conditions(widths, 4).items()}
    y = net(torch.randn(4, *shape), torch.zeros(4), cond)
    assert y.shape == (4, *shape)
    assert not y.any()


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_a_condition_matters_and_can_be_withheld_by_row(make):
    net, shape, widths = make()
    awake(net)
    x = torch.randn(4, *shape, dtype=torch.float64)
    c = torch.linspace(-1, 1, 4, dtype=torch.float64)
    cond = conditions(widths, 4)
    full = net(x, c, cond)
    for key in widths:
        absent = net(x, c, conds.without(cond, key))
        assert ((absent - full).abs().flatten(1).max(1).values > 1e-4).all(), key
        keep = torch.tensor([True, False, True, False])
        mixed = net(x, c, {**cond, f"keep:{key}": keep})
        torch.testing.assert_close(mixed[keep], full[keep])
        torch.testing.assert_close(mixed[~keep], absent[~keep])


@pytest.mark.parametrize("make", NETS.values(), ids=NETS.keys())
def test_rows_do_not_touch_each_other_and_every_parameter_learns(make):
    net, shape, widths = make()
    awake(net)
    x = torch.randn(3, *shape, dtype=torch.float64)
    c = torch.linspace(-1, 1, 3, dtype=torch.float64)
    cond = conditions(widths, 3)
    whole = net(x, c, cond)
    torch.testing.assert_close(net(x[1:2], c[1:2], conds.rows(cond, slice(1, 2))), whole[1:2])
    dropped = {**cond, **{f"keep:{key}": torch.tensor([True, False, True]) for key in widths}}
    net(x, c, dropped).square().sum().backward()
    for name, value in net.named_parameters():
        assert value.grad is not None and value.grad.abs().max() > 0, name


def test_denoiser_embeds_the_level():
    net, shape, _ = pose_net()
    denoiser = presets.edm(0.5).denoiser(awake(net))
    x = torch.randn(2, *shape, dtype=torch.float64)
    one = denoiser(x, sigma_level(torch.tensor([0.5, 2.0]).double()))
    torch.testing.assert_close(one[:1], denoiser(x[:1], sigma_level(torch.tensor(0.5).double())))
    assert not torch.allclose(one[1:], denoiser(x[1:], sigma_level(torch.tensor(0.5).double())))


def test_denoiser_runs_a_low_precision_net_in_its_type():
    denoiser = presets.edm(0.5).denoiser(MLP(3, width=16).bfloat16())
    x = torch.randn(2, 3, dtype=torch.float64)
    assert denoiser(x, sigma_level(torch.tensor(0.5))).dtype == torch.float64


@pytest.mark.parametrize("name", ["edm", "rectified_flow", "ddpm"])
def test_denoisers_ignore_the_gauge(name):
    from diffusion_core.level import Level

    denoiser = getattr(presets, name)(0.7).denoiser(awake(MLP(3, width=16)))
    here = Level(torch.tensor(0.6).double(), torch.tensor(0.9).double())
    x = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(denoiser(5 * x, Level(5 * here.a, 5 * here.s)), denoiser(x, here))


def test_graph_distances():
    distances = graph_distances(6, EDGES)  # joint 5 hangs in the air
    assert distances[3].tolist() == [3, 2, 1, 0, 4, 5]
    assert torch.equal(distances, distances.T)


def test_the_skeleton_biases_attention():
    net, shape, _ = pose_net()
    awake(net)
    x = torch.randn(1, *shape, dtype=torch.float64)
    c = torch.zeros(1, dtype=torch.float64)
    before = net(x, c, {})
    with torch.no_grad():
        net.bias[:, :, 1:] = -1e9  # nobody listens to anybody else
    nudged = x.clone()
    nudged[0, 4] += 1
    alone = net(x, c, {})
    changed = (net(nudged, c, {}) - alone).abs().amax(-1)[0] > 1e-9
    assert changed.tolist() == [False, False, False, False, True]
    assert not torch.allclose(before, alone)


def test_drop_withholds_rows_with_the_probability_and_by_id():
    cond = {"vec:a": torch.randn(5000, 2), "vec:b": torch.randn(5000, 1)}
    ids = torch.arange(5000)
    out = conds.drop(cond, 0.25, 0, ids)
    assert torch.equal(out["keep:vec:a"], out["keep:vec:b"])
    assert abs(float((~out["keep:vec:a"]).float().mean()) - 0.25) < 4 * (0.25 * 0.75 / 5000) ** 0.5
    part = conds.drop(conds.rows(cond, slice(10, 20)), 0.25, 0, ids[10:20])
    assert torch.equal(part["keep:vec:a"], out["keep:vec:a"][10:20])
    assert conds.keys(out) == ["vec:a", "vec:b"] and conds.without(out) == {}
    assert set(conds.without(out, "vec:a")) == {"vec:b", "keep:vec:b"}
