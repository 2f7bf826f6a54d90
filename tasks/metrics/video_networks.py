"""The networks of the Frechet video distance, I3D and C3D: features of clips.

Parameters have the names of the common PyTorch weights (for I3D `rgb_imagenet.pt` and its relatives, for C3D `c3d.pickle`),
which load unchanged. The names also tell which network a file belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tasks.common.errors import UserError
from tasks.config.params import Weights
from tasks.metrics import weights

FRAMES = 16  # per clip


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """TensorFlow's "same" padding: ceil(size / stride) places remain, and an odd zero is added at the end."""
    pad: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pad += [total // 2, total - total // 2]
    return functional.pad(x, pad)


class _Unit(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        padded = _same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return functional.relu(self.bn(self.conv3d(padded)))


class _Pool(nn.Module):
    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool3d(_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """Four parallel branches with these `widths`: 1x1, 1x1 -> 3x3, 1x1 -> 3x3, pool -> 1x1."""

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, widths[0])
        self.b1a, self.b1b = _Unit(inputs, widths[1]), _Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = _Unit(inputs, widths[3]), _Unit(widths[3], widths[4], 3)
        self.b3a, self.b3b = _Pool((3, 3, 3), (1, 1, 1)), _Unit(inputs, widths[5])

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


class _Logits(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.conv3d(x)
        return logits


class I3d(nn.Module):
    """Inflated Inception-v1 (Carreira & Zisserman 2017, arXiv 1705.07750): clips `[n, 3, t, h, w]` in [-1, 1] to logits."""

    size = 224

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2)
        self.MaxPool3d_2a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = _Unit(64, 64)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = _Pool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = _Mixed(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = _Mixed(256, (128, 128, 192, 32, 96, 64))
        self.MaxPool3d_4a_3x3 = _Pool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = _Mixed(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = _Mixed(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = _Mixed(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = _Mixed(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = _Mixed(528, (256, 160, 320, 32, 128, 128))
        self.MaxPool3d_5a_2x2 = _Pool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = _Mixed(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = _Mixed(832, (384, 192, 384, 48, 128, 128))
        self.logits = _Logits(1024, classes)

    @staticmethod
    def prepared(clips: Tensor) -> Tensor:
        """Clips with values 0..255, scaled for the network."""
        return clips / 127.5 - 1

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
        logits: Tensor = self.logits(x)
        return logits.mean(dim=(2, 3, 4))


class C3d(nn.Module):
    """C3D (Tran et al. 2015, arXiv 1412.0767): clips `[n, 3, 16, 112, 112]` to the 4096 numbers of fc6, after ReLU."""

    size = 112
    mean = (102.0, 98.0, 90.0)  # of Sports-1M, red green blue

    def __init__(self) -> None:
        super().__init__()
        widths = {"conv1": (3, 64), "conv2": (64, 128), "conv3a": (128, 256), "conv3b": (256, 256), "conv4a": (256, 512),
                  "conv4b": (512, 512), "conv5a": (512, 512), "conv5b": (512, 512)}  # fmt: skip
        for name, (inputs, outputs) in widths.items():
            self.add_module(name, nn.Conv3d(inputs, outputs, 3, padding=1))
        self.fc6 = nn.Linear(8192, 4096)

    @classmethod
    def prepared(cls, clips: Tensor) -> Tensor:
        """Clips with values 0..255, scaled for the network."""
        return clips - torch.tensor(cls.mean)[:, None, None, None]

    def forward(self, x: Tensor) -> Tensor:
        for layers, kernel, pad in (
            (("conv1",), (1, 2, 2), 0), (("conv2",), 2, 0), (("conv3a", "conv3b"), 2, 0), (("conv4a", "conv4b"), 2, 0),
            (("conv5a", "conv5b"), 2, (0, 1, 1)),
        ):  # fmt: skip
            for name in layers:
                x = functional.relu(self.get_submodule(name)(x))
            x = functional.max_pool3d(x, kernel, padding=pad)
        return functional.relu(self.fc6(x.flatten(1)))


def build(tensors: Mapping[str, Tensor]) -> I3d | C3d:
    """The network that these tensors belong to. Raises RuntimeError if they belong to neither."""
    network: I3d | C3d
    if "Conv3d_1a_7x7.conv3d.weight" in tensors:
        network = I3d(len(tensors["logits.conv3d.bias"]))
        wanted = dict(tensors)
    else:
        network = C3d()
        wanted = {name: tensor for name, tensor in tensors.items() if not name.startswith(("fc7", "fc8"))}
    network.load_state_dict(wanted)
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class ClipNetwork:
    """A network with its weights, and a description of everything else that its features depend on."""

    module: I3d | C3d
    about: dict[str, str]

    def __call__(self, clips: np.ndarray) -> dict[str, np.ndarray]:
        """`features` float32 `[n, d]` of clips uint8 `[n, FRAMES, h, w, 3]`, resized by bilinear interpolation."""
        size = self.module.size
        rows = []
        with torch.inference_mode():
            for clip in clips:
                frames = torch.from_numpy(clip).permute(0, 3, 1, 2).float()
                resized = functional.interpolate(frames, (size, size), mode="bilinear", antialias=True)
                rows.append(self.module(self.module.prepared(resized.transpose(0, 1)[None]))[0].numpy())
        return {"features": np.stack(rows)}


def load(given: Weights, root: Path) -> ClipNetwork:
    """The network of `fidelity.video`. Raises UserError if the file cannot be used or holds another network."""
    tensors = weights.read(weights.locate(given, root), given.source)
    try:
        module = build(tensors)
    except (RuntimeError, KeyError) as error:
        raise UserError(f"fidelity.video: {given.source} does not hold the weights of I3D or C3D.") from error
    name = type(module).__name__
    resize = f"bilinear with antialiasing, {module.size} px"
    return ClipNetwork(module, {"network": name, "weights": given.sha256, "resize": resize, "dtype": "float32"})
