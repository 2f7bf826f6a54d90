import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from tasks.common.errors import UserError
from tasks.config.params import Weights
from tasks.metrics import video_networks
from tasks.metrics.video_networks import C3d, I3d, build, load


def given(path: Path) -> Weights:
    return Weights(source=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def random_i3d() -> I3d:
    torch.manual_seed(0)
    network = I3d(10).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # so that something arrives at the end
    return network


@pytest.mark.parametrize(("size", "kernel", "stride"), [(16, 7, 2), (15, 7, 2), (8, 3, 1), (9, 3, 2), (5, 1, 2)])
def test_padding_keeps_as_many_places_as_in_tensorflow(size: int, kernel: int, stride: int) -> None:
    x = torch.ones(1, 1, size, size, size)
    padded = video_networks._same(x, (kernel,) * 3, (stride,) * 3)
    places = functional.max_pool3d(padded, kernel, stride).shape[2:]
    assert tuple(places) == (-(-size // stride),) * 3
    total = padded.shape[2] - size
    before = int((padded[0, 0, :, size // 2, size // 2].cumsum(0) == 0).sum())
    assert before == total // 2  # the odd one is behind


def test_i3d_sees_order_and_is_built_as_its_weights_say(tmp_path: Path) -> None:
    save_file(random_i3d().state_dict(), tmp_path / "i3d.safetensors")
    network = load(given(tmp_path / "i3d.safetensors"), tmp_path)
    network.module.size = 32  # what takes seconds at 224 is done in a moment
    clip = np.random.default_rng(0).integers(0, 256, (1, 16, 20, 20, 3)).astype(np.uint8)
    clip[:, 8:] //= 8
    forward, backward = (network(some)["features"] for some in (clip, clip[:, ::-1].copy()))
    assert forward.shape == (1, 10) and np.abs(forward - backward).max() > 1e-3
    both = network(np.concatenate([clip, clip[:, ::-1]]))["features"]
    np.testing.assert_array_equal(both, np.concatenate([forward, backward]))
    assert network.about["network"] == "I3d"


def test_a_still_grey_clip_is_zero_to_i3d_and_the_mean_is_zero_to_c3d() -> None:
    grey = torch.full((1, 3, 16, 4, 4), 127.5)
    assert I3d.prepared(grey).abs().max() == 0
    mean = torch.tensor(C3d.mean)[None, :, None, None, None].expand(1, 3, 16, 4, 4)
    assert C3d.prepared(mean).abs().max() == 0


def test_other_weights_are_refused(tmp_path: Path) -> None:
    tensors = random_i3d().state_dict()
    del tensors["Mixed_4b.b0.bn.weight"]
    for some in (tensors, {"weight": torch.ones(2)}):
        save_file(some, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match=r"fidelity\.video: w\.safetensors does not hold the weights of I3D or C3D"):
            load(given(tmp_path / "w.safetensors"), tmp_path)


@pytest.mark.slow
def test_c3d_gives_its_first_fully_connected_layer() -> None:
    torch.manual_seed(0)
    tensors = {**C3d().state_dict(), "fc7.weight": torch.ones(1), "fc8.weight": torch.ones(1)}
    with torch.no_grad():
        found = build(tensors)(torch.randn(1, 3, 16, 112, 112))
    assert found.shape == (1, 4096) and found.min() == 0
