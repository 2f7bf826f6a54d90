"""Features without a network: pixels and edges of pictures, joints of poses."""

from __future__ import annotations

import numpy as np


def pixels(pictures: np.ndarray) -> np.ndarray:
    """Pixel features float32 `[n, h * w * 3]` of pictures float32 `[n, h, w, 3]` in [0, 1]."""
    return np.ascontiguousarray(pictures, dtype=np.float32).reshape(len(pictures), -1)


def edges(pictures: np.ndarray) -> np.ndarray:
    """Edge features float32 `[n, h * w]`: gradient length of luminance (ITU-R BT.601), scaled to unit norm.

    They do not depend on brightness and contrast, and hardly on colour. A picture without edges has features 0.
    """
    luminance = pictures.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    down, right = np.gradient(luminance, axis=(1, 2))
    strength = np.hypot(down, right).reshape(len(pictures), -1)
    norm = np.linalg.norm(strength, axis=1, keepdims=True)
    features: np.ndarray = np.divide(strength, norm, out=np.zeros_like(strength), where=norm > 1e-6)
    return features


def joints(poses: np.ndarray) -> np.ndarray:
    """Pose features float32 `[n, 99]` of poses `[n, 33, 3]`: hip-centred, torso-scaled world landmarks."""
    return np.ascontiguousarray(poses, dtype=np.float32).reshape(len(poses), -1)
