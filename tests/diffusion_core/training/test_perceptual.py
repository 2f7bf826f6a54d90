"""The perceptual distance: VGG-16's features as torchvision computes them, and LPIPS' formula."""

import pytest
import torch
from torch import Tensor

from diffusion_core.training.perceptual import MEAN, SD, Perceptual


def vgg() -> dict[str, Tensor]:
    """Random weights with torchvision's names, and those of its classifier, which are ignored."""
    generator = torch.Generator().manual_seed(0)
    out = {"classifier.0.bias": torch.zeros(3)}
    inp = 3
    for number, width in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64, 64, 128, 128, *[256] * 3, *[512] * 6), strict=True
    ):
        out[f"features.{number}.weight"] = torch.randn(width, inp, 3, 3, generator=generator) * (2 / 9 / inp) ** 0.5
        out[f"features.{number}.bias"] = torch.randn(width, generator=generator) * 0.1
        inp = width
    return out


def lpips() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    widths = (64, 128, 256, 512, 512)
    return {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator) for i, width in enumerate(widths)}


def pictures(seed: int) -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_features_are_torchvisions_and_the_distance_is_that_of_the_paper() -> None:
    models = pytest.importorskip("torchvision.models")
    weights = vgg()
    net = models.vgg16(weights=None).features.eval()
    net.load_state_dict({key.removeprefix("features."): v for key, v in weights.items() if key.startswith("features.")})
    x, y = pictures(0), pictures(1)
    mean, sd = (torch.tensor(value).reshape(-1, 1, 1) for value in (MEAN, SD))
    distance = Perceptual(weights, lpips())
    expected = torch.zeros(2)
    taps = []
    with torch.no_grad():
        a, b = ((picture / 2 + 0.5 - mean) / sd for picture in (x, y))
        for number, layer in enumerate(net[:30]):
            a, b = layer(a), layer(b)
            if number in (3, 8, 15, 22, 29):
                share = lpips()[f"lin{len(taps)}.model.1.weight"]
                unit = [h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10) for h in (a, b)]
                expected += (share * (unit[0] - unit[1]) ** 2).sum(1).mean((1, 2))
                taps.append(a)
        got = distance(x, y)
        for mine, theirs in zip(distance.features(x), taps, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert not distance(x, x).any() and not list(distance.parameters()) and not distance.state_dict()


def test_without_lpips_all_features_count_alike() -> None:
    plain = Perceptual(vgg())
    alike = {name: torch.full_like(value, 1 / value.numel()) for name, value in lpips().items()}
    torch.testing.assert_close(plain(pictures(0), pictures(1)), Perceptual(vgg(), alike)(pictures(0), pictures(1)))


def test_other_files_are_refused() -> None:
    missing = vgg()
    del missing["features.28.bias"]
    with pytest.raises(ValueError, match=r"features\.28\.bias"):
        Perceptual(missing)
    with pytest.raises(ValueError, match="lin0"):
        Perceptual(vgg(), {"lin0.weight": torch.zeros(1)})
