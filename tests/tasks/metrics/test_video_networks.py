"""I3D and C3D against plain forward passes written here from the papers, and against stored values.

The networks of the tests have weights that are functions of their names, and normalisations that do something, so that a
layer in the wrong place, a forgotten step or an exchanged axis changes the features.
"""

import hashlib
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tasks.common.errors import UserError
from tasks.config.params import Weights
from tasks.metrics import video_networks
from tasks.metrics.video_networks import C3d, ClipNetwork, I3d, build, load

CLASSES = 10  # of the I3D in these tests


def given(path: Path) -> Weights:
    return Weights(source=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def named_weights(network: nn.Module) -> dict[str, Tensor]:
    """Weights of the network that depend on nothing but their names and shapes, with activations of about 1."""
    tensors = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = value
            continue
        uniform = torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).random(value.shape, np.float32))
        if value.ndim > 1:
            tensors[name] = (uniform - 0.5) * (24 / value[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            tensors[name] = 0.5 + uniform
        else:
            tensors[name] = uniform - 0.5
    return tensors


@pytest.fixture(scope="module")
def i3d_weights() -> dict[str, Tensor]:
    return named_weights(I3d(CLASSES))


@pytest.fixture(scope="module")
def c3d_weights() -> dict[str, Tensor]:
    return named_weights(small_c3d())


def small_c3d() -> C3d:
    """C3D for frames of 48 pixels, whose last layer is small: 2 x 2 instead of 4 x 4 places, 32 instead of 4096 features."""
    network = C3d()
    network.size = 48
    network.fc6 = nn.Linear(512 * 2 * 2, 32)
    return network.eval().requires_grad_(False)


def clips(count: int, height: int, width: int) -> np.ndarray:
    """Clips of which no two frames, rows, columns or channels look alike, uint8 `[count, 16, height, width, 3]`."""
    noise = np.random.default_rng(5).random((count, 16, height // 4, width // 4, 3))
    noise = noise.repeat(4, axis=2).repeat(4, axis=3)
    ramps = [np.linspace(0.2, 1, size).reshape(shape) for size, shape in
             ((16, (16, 1, 1, 1)), (height, (height, 1, 1)), (width, (width, 1)), (3, (3,)))]  # fmt: skip
    return (255 * noise * ramps[0] * ramps[1] * ramps[2] * ramps[3]).astype(np.uint8)


def resized(clip: np.ndarray, size: int) -> Tensor:
    """The frames of a clip `[16, h, w, 3]` resized by Pillow, `[1, 3, 16, size, size]` in 0 ... 255.

    Pillow's bilinear filter averages over all pixels that a new pixel covers.
    """
    frames = [
        [np.asarray(Image.fromarray(frame[:, :, channel].astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR))
         for frame in clip]
        for channel in range(3)
    ]  # fmt: skip
    return torch.from_numpy(np.array(frames))[None]


def same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    """`x` with the border that TensorFlow's "SAME" puts around time, height and width: the smaller half comes first."""
    for axis, k, s in zip((2, 3, 4), kernel, stride, strict=True):
        size = x.shape[axis]
        total = max(k - (size % s or s), 0)
        shape = list(x.shape)
        border = []
        for width in (total // 2, total - total // 2):
            shape[axis] = width
            border.append(torch.full(shape, value))
        x = torch.cat([border[0], x, border[1]], axis)
    return x


# Carreira & Zisserman 2017, figure 3: convolutions with their stride, pools as (kernel, stride) over time, height and width,
# and Inception modules.
I3D_LAYERS: list[tuple[str, int] | tuple[tuple[int, ...], tuple[int, ...]] | str] = [
    ("Conv3d_1a_7x7", 2), ((1, 3, 3), (1, 2, 2)), ("Conv3d_2b_1x1", 1), ("Conv3d_2c_3x3", 1), ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b", "Mixed_3c", ((3, 3, 3), (2, 2, 2)), "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f",
    ((2, 2, 2), (2, 2, 2)), "Mixed_5b", "Mixed_5c",
]  # fmt: skip


def i3d(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits `[n, classes]` of clips `[n, 3, t, h, w]` with values 0 ... 255."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = w[f"{name}.conv3d.weight"]
        x = functional.conv3d(same(x, weight.shape[2:], (stride,) * 3, 0.0), weight, stride=stride)
        mean, variance, gain, shift = (
            w[f"{name}.bn.{part}"].view(1, -1, 1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (gain * (x - mean) / torch.sqrt(variance + 0.001) + shift).clamp(min=0)

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return functional.max_pool3d(same(x, kernel, stride, -torch.inf), kernel, stride)

    def inception(x: Tensor, name: str) -> Tensor:
        pointwise = unit(x, f"{name}.b0")
        first = unit(unit(x, f"{name}.b1a"), f"{name}.b1b")
        second = unit(unit(x, f"{name}.b2a"), f"{name}.b2b")
        pooled = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")
        return torch.cat([pointwise, first, second, pooled], 1)

    x = x / 255 * 2 - 1
    for layer in I3D_LAYERS:
        if isinstance(layer, str):
            x = inception(x, layer)
        elif isinstance(layer[0], str):
            x = unit(x, *layer)
        else:
            x = pool(x, *layer)
    # One linear layer at every place, and the mean over places and time.
    return x.mean(dim=(2, 3, 4)) @ w["logits.conv3d.weight"][:, :, 0, 0, 0].T + w["logits.conv3d.bias"]


def c3d(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The first fully connected layer `[n, f]` of clips `[n, 3, 16, h, w]` with values 0 ... 255.

    Tran et al. 2015, figure 3: eight 3 x 3 x 3 convolutions, five pools; the first pool does not touch time.
    """
    x = x - torch.tensor([102.0, 98.0, 90.0]).view(1, 3, 1, 1, 1)
    for names in (["conv1"], ["conv2"], ["conv3a", "conv3b"], ["conv4a", "conv4b"], ["conv5a", "conv5b"]):
        for name in names:
            x = functional.pad(x, (1, 1, 1, 1, 1, 1))
            x = functional.conv3d(x, w[f"{name}.weight"]) + w[f"{name}.bias"].view(1, -1, 1, 1, 1)
            x = x.clamp(min=0)
        if names == ["conv5a", "conv5b"]:
            x = functional.pad(x, (1, 1, 1, 1))  # zeros, and no value is below zero
        time = 1 if names == ["conv1"] else 2
        x = functional.max_pool3d(x, (time, 2, 2))
    rows = x.reshape(len(x), -1) @ w["fc6.weight"].T + w["fc6.bias"]
    return rows.clamp(min=0)


def our_i3d(weights: Mapping[str, Tensor], size: int = 40) -> ClipNetwork:
    module = build(weights)
    assert isinstance(module, I3d)
    module.size = size  # what takes seconds at 224 is done in a moment; 40 needs borders of both kinds
    return ClipNetwork(module, {})


def our_c3d(weights: Mapping[str, Tensor]) -> ClipNetwork:
    module = small_c3d()
    module.load_state_dict(dict(weights))
    return ClipNetwork(module, {})


@pytest.mark.parametrize(("height", "width"), [(64, 96), (24, 20)])  # to be made smaller, and larger
def test_features_of_i3d_are_those_of_the_paper(height: int, width: int, i3d_weights: dict[str, Tensor]) -> None:
    both = clips(2, height, width)
    ours = our_i3d(i3d_weights)(both)["features"]
    expected = torch.cat([i3d(i3d_weights, resized(clip, 40)) for clip in both]).numpy()
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-4)


def test_features_of_c3d_are_those_of_the_paper(c3d_weights: dict[str, Tensor]) -> None:
    clip = clips(1, 64, 96)
    ours = our_c3d(c3d_weights)(clip)["features"]
    expected = c3d(c3d_weights, resized(clip[0], 48)).numpy()
    assert 0.2 < float((expected > 0).mean()) < 0.8
    np.testing.assert_allclose(ours, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_features_are_the_stored_ones(i3d_weights: dict[str, Tensor], c3d_weights: dict[str, Tensor]) -> None:
    """Also when the plain forward pass above changes with the network's."""
    clip = clips(1, 64, 96)
    of_i3d = our_i3d(i3d_weights)(clip)["features"][0]
    np.testing.assert_allclose(of_i3d[:5], [4.3089, 4.9224, 6.9086, -1.4817, -5.5802], rtol=2e-3)
    of_c3d = our_c3d(c3d_weights)(clip)["features"][0]
    np.testing.assert_allclose(of_c3d[of_c3d > 0][:5], [38.8675, 38.6601, 4.4829, 99.155, 74.1946], rtol=2e-3)


def test_the_published_sizes_are_those_of_the_papers() -> None:
    assert (I3d.size, C3d.size, video_networks.FRAMES) == (224, 112, 16)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in I3d(400).parameters()) == 12_697_264
        first = C3d().fc6
    assert (first.in_features, first.out_features) == (512 * 1 * 4 * 4, 4096)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(16, 7, 2), (15, 7, 2), (8, 3, 1), (9, 3, 2), (5, 1, 2)])
def test_padding_keeps_as_many_places_as_in_tensorflow(size: int, kernel: int, stride: int) -> None:
    x = torch.ones(1, 1, size, size, size)
    padded = video_networks._same(x, (kernel,) * 3, (stride,) * 3)
    places = functional.max_pool3d(padded, kernel, stride).shape[2:]
    assert tuple(places) == (-(-size // stride),) * 3
    total = padded.shape[2] - size
    before = int((padded[0, 0, :, size // 2, size // 2].cumsum(0) == 0).sum())
    assert before == total // 2  # the odd one is behind


def test_a_file_of_weights_gives_its_network(tmp_path: Path, i3d_weights: dict[str, Tensor]) -> None:
    save_file(i3d_weights, tmp_path / "i3d.safetensors")
    network = load(given(tmp_path / "i3d.safetensors"), tmp_path)
    network.module.size = 40
    both = clips(2, 64, 96)
    np.testing.assert_array_equal(network(both)["features"], our_i3d(i3d_weights)(both)["features"])
    assert network.about["network"] == "I3d"


def test_other_weights_are_refused(tmp_path: Path, i3d_weights: dict[str, Tensor]) -> None:
    tensors = {name: value for name, value in i3d_weights.items() if name != "Mixed_4b.b0.bn.weight"}
    for some in (tensors, {"weight": torch.ones(2)}):
        save_file(some, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"fidelity\.video: w\.safetensors does not hold the weights of I3D or C3D"):
            load(given(tmp_path / "w.safetensors"), tmp_path)


@pytest.mark.slow
def test_features_of_c3d_are_its_first_fully_connected_layer() -> None:
    torch.manual_seed(0)
    tensors = {**C3d().state_dict(), "fc7.weight": torch.ones(1), "fc8.weight": torch.ones(1)}
    with torch.no_grad():
        features = build(tensors)(torch.randn(1, 3, 16, 112, 112))
    assert features.shape == (1, 4096) and features.min() == 0
