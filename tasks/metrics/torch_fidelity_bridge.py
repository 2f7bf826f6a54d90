"""torch-fidelity's Frechet distance in the space of poses. It is imported on use, since it imports torchvision.

Its cache stays off: it is keyed by name alone, and its files are pickles.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

POSE_EXTRACTOR = "contrapposto-pose99"
POSE_FEATURES = "99"


class _Rows(Dataset[torch.Tensor]):
    """An array as the map-style dataset of tensors that torch-fidelity expects."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = torch.from_numpy(np.ascontiguousarray(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self._rows[i]


@cache
def _register_pose_extractor() -> None:
    """Register the pose space with torch-fidelity; a name can be registered once per process."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import register_feature_extractor

    class PoseFeatures(FeatureExtractorBase):  # type: ignore[misc, unused-ignore]  # no types
        """Normalised world landmarks `[n, 33, 3]` as 99 features; there are no weights."""

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
    """torch-fidelity's Frechet distance between poses `[n, 33, 3]` and `[m, 33, 3]`; the features are the 99 coordinates.

    The plug-in value in squared torso lengths, biased upwards by about 1/n (tasks/metrics/frechet.py corrects it).
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
