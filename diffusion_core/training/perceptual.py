"""The distance of pictures in the features of VGG-16: a perceptual loss.

The weights are given: those of torchvision's VGG-16 and, if at hand, the learned weights of LPIPS' layers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, normalize, relu

# Convolutions of torchvision's `vgg16().features` by their number there, a list for each resolution. The distance compares what
# the last of each list gives after its ReLU: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3.
LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pictures in 0 ... 1


class Perceptual(nn.Module):
    """LPIPS (Zhang et al. 2018, arXiv 1801.03924, eq. 1), or the same with equal weights, which sum to one in each layer.

    vgg: tensors `features.<number>.weight` and `.bias` as torchvision names them; others are ignored. lpips: tensors
    `lin<layer>.model.1.weight` as in the authors' `vgg.pth`. Raises ValueError if tensors are missing or have another shape.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, vgg: Mapping[str, Tensor], lpips: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(-1, 1, 1) * 2 - 1, False)
        self.register_buffer("sd", torch.tensor(SD).reshape(-1, 1, 1) * 2, False)
        inp = 3
        for layer, numbers in enumerate(LAYERS):
            width = min(64 * 2**layer, 512)
            for number in numbers:
                self._take(vgg, f"features.{number}.weight", (width, inp, 3, 3))
                self._take(vgg, f"features.{number}.bias", (width,))
                inp = width
            name = f"lin{layer}.model.1.weight"
            share = {name: torch.full((1, width, 1, 1), 1 / width)} if lpips is None else lpips
            self._take(share, name, (1, width, 1, 1))

    def _take(self, tensors: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> None:
        if name not in tensors or tuple(tensors[name].shape) != shape:
            found = list(tensors[name].shape) if name in tensors else "absent"
            raise ValueError(f"{name} must have the shape {list(shape)}, it is {found}")
        self.register_buffer(_buffer(name), tensors[name].detach().float(), False)

    def features(self, x: Tensor) -> list[Tensor]:
        """What the layers give for pictures `[B, 3, s, s]` in -1 ... 1; s at least 16."""
        h = (x - self.mean) / self.sd
        out = []
        for layer, numbers in enumerate(LAYERS):
            if layer:
                h = max_pool2d(h, 2)
            for number in numbers:
                weight, bias = (getattr(self, _buffer(f"features.{number}.{kind}")) for kind in ("weight", "bias"))
                h = relu(conv2d(h, weight, bias, padding=1))
            out.append(h)
        return out

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of pictures in -1 ... 1, `[B]`."""
        if self.mean.device != x.device:
            self.to(x.device)
        total = x.new_zeros(len(x))
        for layer, (a, b) in enumerate(zip(self.features(x), self.features(y), strict=True)):
            difference = (normalize(a.float(), dim=1, eps=1e-10) - normalize(b.float(), dim=1, eps=1e-10)).square()
            share = getattr(self, _buffer(f"lin{layer}.model.1.weight"))
            total = total + (difference * share).sum(1).flatten(1).mean(1)
        return total


def _buffer(name: str) -> str:
    return name.replace(".", "_")
