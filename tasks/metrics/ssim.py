"""Structural similarity of pictures."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW, SD = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2


def ssim(x: Tensor, y: Tensor, real: Tensor | None = None) -> Tensor:
    """Mean structural similarity of pictures `[n, channels, h, w]` in 0 ... 1, `[n]`; 1 for equal ones.

    Wang et al. 2004 (doi 10.1109/TIP.2003.819861): Gaussian window of 11 pixels, each channel by itself. With `real`
    `[n, 1, h, w]`, pixels where it is 0 count as equal, and only windows around the others count.
    """
    if real is not None:
        x = torch.where(real > 0, x, y)
    line = torch.exp(-((torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2) ** 2) / (2 * SD**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]

    def mean(values: Tensor) -> Tensor:
        return conv2d(values.flatten(0, 1)[:, None], window).reshape(len(x), -1)

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    likeness = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    values = likeness / ((mean_x**2 + mean_y**2 + C1) * (sum(variances) + C2))
    if real is None:
        return values.mean(1)
    edge = WINDOW // 2
    counted = real[:, :, edge:-edge, edge:-edge].expand(-1, x.shape[1], -1, -1).reshape(len(x), -1)
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)
