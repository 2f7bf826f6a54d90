"""The networks on CUDA: the same numbers as on the CPU, in bfloat16, and through torch.compile."""

import copy
import os
from collections.abc import Iterator

import pytest
import torch

from tests.support import net_zoo as zoo
from tests.support.net_zoo import KINDS, Kind

# Read when CUDA starts; without it matrix products are not deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
devices = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=gpu)]


@pytest.fixture(autouse=True)
def _full_precision() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()


def _gradients(net: torch.nn.Module, kind: Kind, device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    x, c, cond = zoo.batch(kind, 4)
    net = net.to(device)
    y = net(x.to(device), c.to(device), {key: value.to(device) for key, value in cond.items()})
    y.square().mean().backward()
    return y.detach().cpu(), {name: p.grad.cpu() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
def test_cuda_computes_what_the_cpu_computes(kind: Kind) -> None:
    net = zoo.randomised(kind.make()).float()
    y, gradients = _gradients(copy.deepcopy(net), kind, "cpu")
    y_cuda, gradients_cuda = _gradients(net, kind, "cuda")
    torch.testing.assert_close(y_cuda, y, rtol=1e-3, atol=1e-3 * float(y.abs().max()))
    assert gradients.keys() == gradients_cuda.keys()
    for name, value in gradients.items():
        torch.testing.assert_close(
            gradients_cuda[name], value, rtol=1e-2, atol=1e-3 * float(value.abs().max()), msg=name
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@every
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_cuda_learns_like_the_cpu(kind: Kind, autocast: bool) -> None:
    torch.manual_seed(0)
    net = kind.make()
    on_cpu = zoo.fit(copy.deepcopy(net), kind, 6, rate=3e-3)
    on_cuda = zoo.fit(net.cuda(), kind, 6, rate=3e-3, autocast=autocast)
    if not getattr(net, "latent_self_conditioning", 0):  # which rows get a first pass depends on the device
        assert on_cuda == pytest.approx(on_cpu, rel=0.03 if autocast else 5e-3)
    assert on_cuda[-1] < on_cuda[0]


@pytest.fixture
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.usefixtures("_deterministic")
@every
def test_cuda_gives_the_same_bits_twice(kind: Kind) -> None:
    torch.manual_seed(0)
    net = kind.make().cuda()
    assert zoo.fit(copy.deepcopy(net), kind, 4, autocast=True) == zoo.fit(net, kind, 4, autocast=True)


@every
@pytest.mark.parametrize("device", devices)
def test_compiled_network_learns_like_the_eager_one(kind: Kind, device: str) -> None:
    torch.manual_seed(0)
    net = kind.make().to(device)
    eager = zoo.fit(copy.deepcopy(net), kind, 4)
    compiled = zoo.fit(torch.compile(net), kind, 4)
    if not getattr(net, "latent_self_conditioning", 0):  # a compiled program draws its own random numbers
        assert compiled == pytest.approx(eager, rel=5e-3)
    assert compiled[-1] < compiled[0]
