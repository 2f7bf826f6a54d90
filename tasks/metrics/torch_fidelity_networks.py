"""torch-fidelity's networks that turn pictures into features: Inception-v3, DINOv2, CLIP and VGG-16.

Architecture, resizing and normalisation are torch-fidelity's, so that distances compare with published ones. The weights are
the user's. torch-fidelity's own constructors download files, run code from the network (DINOv2), open TorchScript (CLIP) or
unpickle whatever a file holds; none of that happens here. A constructor that insists on a file gets one in memory, written
from tensors that were read safely. Like `torch_fidelity_bridge`, this module imports torch-fidelity on use.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks.common.errors import UserError
from tasks.config.params import Weights
from tasks.metrics import weights
from tasks.metrics.dinov2 import Dinov2

BATCH = 32


def _in_memory(tensors: Mapping[str, Tensor]) -> io.BytesIO:
    stream = io.BytesIO()
    torch.save(dict(tensors), stream)
    stream.seek(0)
    return stream


def _inception(tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    layers = ["2048", "logits_unbiased"]
    extractor: nn.Module = FeatureExtractorInceptionV3(
        "inception-v3-compat", layers, feature_extractor_weights_path=_in_memory(tensors)
    )
    return extractor


def _vgg(tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    extractor: nn.Module = FeatureExtractorVGG16(
        "vgg16", ["fc2_relu"], feature_extractor_weights_path=_in_memory(tensors)
    )
    return extractor


def _without_constructor(kind: type[nn.Module], name: str, layer: str, model: nn.Module) -> Any:
    """An extractor of torch-fidelity around a given network; its constructor would download one."""
    extractor: Any = kind.__new__(kind)
    nn.Module.__init__(extractor)
    extractor.name, extractor.features_list = name, [layer]
    extractor.feature_extractor_internal_dtype = torch.float32
    extractor.model = model.eval()
    return extractor.requires_grad_(False)


def _dinov2(tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    extractor: nn.Module = _without_constructor(
        FeatureExtractorDinoV2, "dinov2", "dinov2", Dinov2.from_weights(tensors)
    )
    return extractor


def _clip(tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model

    model = build_model(dict(tensors), torch.float32)
    extractor = _without_constructor(FeatureExtractorCLIP, "clip", "clip", model)
    extractor.resolution = model.visual.input_resolution
    module: nn.Module = extractor
    return module


BUILDERS: dict[str, Callable[[Mapping[str, Tensor]], nn.Module]] = {
    "inception": _inception,
    "dinov2": _dinov2,
    "clip": _clip,
    "vgg": _vgg,
}
TITLES = {"inception": "Inception-v3", "dinov2": "DINOv2", "clip": "CLIP", "vgg": "VGG-16"}


@dataclass(frozen=True)
class Network:
    """A network with its weights, and a description of everything else that its features depend on."""

    module: nn.Module
    about: dict[str, str]

    def __call__(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """`features` float32 `[n, d]` of pictures uint8 `[n, h, w, 3]`; Inception also gives the unbiased `logits`."""
        parts = []
        with torch.inference_mode():
            for start in range(0, len(pictures), BATCH):
                rows = torch.from_numpy(pictures[start : start + BATCH]).permute(0, 3, 1, 2)
                parts.append([layer.float().numpy() for layer in self.module(rows)])
        layers = [np.concatenate(layer) for layer in zip(*parts, strict=True)]
        return dict(zip(("features", "logits"), layers, strict=False))


def load(name: str, given: Weights, root: Path) -> Network:
    """The network `name` of BUILDERS with the weights given in the parameters.

    Raises UserError if the file is missing, has another sha256 or another format, or holds another network.
    """
    tensors = weights.read(weights.locate(given, root), given.source)
    try:
        module = BUILDERS[name](tensors)
    except (RuntimeError, KeyError, IndexError, ValueError, AttributeError) as error:
        raise UserError(f"fidelity.{name}: {given.source} does not hold the weights of {TITLES[name]}.") from error
    resize = "bilinear as TensorFlow 1, to the network's own size"
    about = {"network": name, "weights": given.sha256, "resize": resize, "range": "uint8 0..255", "dtype": "float32"}
    return Network(module, about)
