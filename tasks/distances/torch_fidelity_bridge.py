"""torch-fidelity behind four functions. The only module that imports it, and only when one of them is called.

Its import pulls in torchvision, its Inception weights are a pickle or a download, its cache is keyed by name alone and
its own cache files are pickles: all of that ends here. The cache stays off; weights come from a file whose sha256 is
given, and are unpickled by torch's restricted reader, which executes nothing.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import trange

from tasks.errors import UserError

POSE_EXTRACTOR = "contrapposto-pose99"
POSE_FEATURES = "99"
INCEPTION = {"name": "inception-v3-compat", "resize": "bilinear as TensorFlow 1, 299 px", "range": "uint8 0..255"}


class _Rows(Dataset[torch.Tensor]):
    """An array as the map-style dataset of tensors that torch-fidelity takes."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = torch.from_numpy(np.ascontiguousarray(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self._rows[i]


@cache
def _register_pose_extractor() -> None:
    """Make the pose space known to torch-fidelity; a name can be registered once per process."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import register_feature_extractor

    class PoseFeatures(FeatureExtractorBase):
        """Normalised world landmarks `[n, 33, 3]` to 99 features; it needs no weights."""

        def __init__(self, name: str, features_list: list[str], **_: Any) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (POSE_FEATURES,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return POSE_FEATURES

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> torch.Tensor:
            return torch.zeros(1, 33, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (x.flatten(1).double(),)

    register_feature_extractor(POSE_EXTRACTOR, PoseFeatures)


def frechet_pose_distance(poses: np.ndarray, reference: np.ndarray) -> float:
    """torch-fidelity's Frechet distance between poses `[n, 33, 3]` and `[m, 33, 3]`, features: the 99 coordinates.

    The plug-in value in squared torso lengths, biased upwards by about 1/n (tasks/distances/distance.py corrects it).
    """
    from torch_fidelity import calculate_metrics

    _register_pose_extractor()
    metrics = calculate_metrics(
        input1=_Rows(poses),
        input2=_Rows(reference),
        fid=True,
        feature_extractor=POSE_EXTRACTOR,
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )
    return float(metrics["frechet_inception_distance"])


@contextmanager
def _restricted_unpickling() -> Iterator[None]:
    """torch.load reads tensors only, even where its caller asks for arbitrary objects."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def load_inception(weights: Path, sha256: str) -> torch.nn.Module:
    """torch-fidelity's Inception-v3 (pool features and unbiased logits) from a local weights file.

    Raises UserError if the file is missing, has another sha256, or is not the weights of this network.
    """
    if not weights.is_file():
        raise UserError(f"fidelity.inception_weights: {weights} does not exist.")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != sha256:
        raise UserError(
            f"fidelity.inception_weights: {weights} has sha256 {digest}, and inception_sha256 says {sha256}."
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        with _restricted_unpickling():
            return FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048", "logits_unbiased"],
                feature_extractor_weights_path=str(weights),
            )
    except (pickle.UnpicklingError, EOFError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"fidelity.inception_weights: {weights} does not hold the tensors of torch-fidelity's Inception-v3."
        ) from error


def inception_features(network: torch.nn.Module, pictures: np.ndarray, batch: int = 32) -> dict[str, np.ndarray]:
    """`pool` float32 `[n, 2048]` and unbiased `logits` `[n, 1008]` of pictures uint8 `[n, h, w, 3]`."""
    pools, logits = [], []
    with torch.no_grad():
        for start in trange(0, len(pictures), batch, desc="inception", mininterval=2):
            rows = torch.from_numpy(pictures[start : start + batch]).permute(0, 3, 1, 2)
            pool, logit = network(rows)
            pools.append(pool.numpy())
            logits.append(logit.numpy())
    return {"pool": np.concatenate(pools), "logits": np.concatenate(logits)}
