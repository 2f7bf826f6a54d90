"""Muon and AdamW in one optimiser."""

import pytest
import torch
from torch import nn

from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.unet import UNet
from diffusion_core.training import optimisers
from diffusion_core.training.optimisers import Muon, hidden_matrices, orthogonalised

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(24, 24), (24, 96), (3, 24, 96)])
def test_all_singular_values_of_the_update_are_near_one(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(-1.5, 1, shape[-2])) @ v
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert values.min() > 0.6 and values.max() < 1.3


def test_the_update_keeps_the_singular_vectors() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ orthogonalised(matrix) @ v.mT
    assert (rotated - rotated.diagonal().diag()).abs().max() < 1e-4


def test_wide_matrices_get_the_update_of_the_plain_iteration() -> None:
    """Also those with small singular values, which the plain iteration raises by a factor of some hundred."""
    u, _, v = torch.linalg.svd(torch.randn(2, 24, 96, generator=torch.Generator().manual_seed(2)), full_matrices=False)
    matrix = u @ torch.diag(torch.logspace(-5, 0, 24)) @ v
    expected = matrix / matrix.norm(dim=(1, 2), keepdim=True)
    for _ in range(optimisers.ITERATIONS):
        a, b, c = optimisers.COEFFICIENTS
        gram = expected @ expected.mT
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalised(matrix), expected, rtol=0, atol=5e-4)


def test_a_matrix_without_gradient_stays() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 8)), torch.zeros(4, 8))


def test_a_step_is_that_of_jordan_et_al() -> None:
    """Two steps against the method written out with singular values: Nesterov momentum, quintic polynomial, decoupled decay."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(48, 16, dtype=torch.float64))
    expected, average = weight.detach().clone(), torch.zeros(48, 16, dtype=torch.float64)
    groups = [{"params": [weight], optimisers.MUON: True}]
    optimiser = Muon(groups, 0.01, (0.9, 0.99), 0.1, False, torch.float64, momentum=0.9)
    a, b, c = optimisers.COEFFICIENTS
    for _ in range(2):
        weight.grad = torch.randn(48, 16, dtype=torch.float64)
        average = 0.9 * average + 0.1 * weight.grad
        u, values, v = torch.linalg.svd(0.1 * weight.grad + 0.9 * average, full_matrices=False)
        values = values / values.norm()
        for _ in range(5):
            values = a * values + b * values**3 + c * values**5
        expected = (1 - 0.01 * 0.1) * expected - 0.01 * 3**0.5 * u @ values.diag() @ v
        optimiser.step()
    assert torch.allclose(weight, expected, atol=1e-6)


def test_matrices_of_one_shape_are_updated_as_if_each_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimisers, "AT_ONCE", 2)
    torch.manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64) for shape in [(8, 4), (4, 8), (8, 4), (6, 6), (4, 2, 2, 2)]]
    gradients = [torch.randn_like(weight) for weight in weights]

    def stepped(indices: list[int]) -> list[torch.Tensor]:
        parameters = [nn.Parameter(weights[i].clone()) for i in indices]
        for parameter, i in zip(parameters, indices, strict=True):
            parameter.grad = gradients[i]
        Muon([{"params": parameters, optimisers.MUON: True}], 0.1, (0.9, 0.99), 0.0, False, torch.float64).step()
        return [parameter.detach() for parameter in parameters]

    for i, together in enumerate(stepped([0, 1, 2, 3, 4])):
        assert torch.allclose(together, stepped([i])[0], atol=1e-12)


def test_a_kernel_is_a_matrix_of_output_channels() -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    gradient = torch.randn(8, 4, 3, 3)
    for parameter, grad in ((kernel, gradient), (matrix, gradient.flatten(1))):
        parameter.grad = grad
        Muon([{"params": [parameter], optimisers.MUON: True}], 0.01, (0.9, 0.99), 0.0, False).step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_the_first_and_last_layers_are_left_to_adamw() -> None:
    net = PatchTransformer(8, 2, width=16, depth=1, heads=1)
    muon = {name for name, p in net.named_parameters() if p in hidden_matrices(net)}
    assert {name.split(".")[0] for name in muon} == {"blocks"}
    assert all("weight" in name for name in muon)
    unet = UNet(16, width=16, depth=1)
    kernels = [p for p in hidden_matrices(unet) if p.ndim == 4]
    assert kernels and unet.conv_in.weight not in hidden_matrices(unet)


def test_both_rates_follow_the_schedule() -> None:
    net = PatchTransformer(8, 2, width=16, depth=1, heads=1)
    optimiser = optimisers.build("muon", net, dict(net.named_parameters()), 1e-3, 5e-3, 0.0, CPU)
    optimisers.set_rate(optimiser, 5e-4)  # half way through a warm-up
    rates = {bool(group.get(optimisers.MUON)): group["lr"] for group in optimiser.param_groups}
    assert rates == {True: pytest.approx(2.5e-3), False: pytest.approx(5e-4)}


def test_every_parameter_is_in_one_group() -> None:
    net = UNet(16, width=16, depth=1)
    optimiser = optimisers.build("muon", net, dict(net.named_parameters()), 1e-3, 5e-3, 0.0, CPU)
    grouped = [id(p) for group in optimiser.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
