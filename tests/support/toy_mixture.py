"""A small mixture of normals with known denoiser, responsibilities and density."""

import torch
from torch import Tensor


def toy(seed: int = 0, d: int = 3, k: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Weights `[k]`, means `[k, d]` and standard deviations `[k]`, float64."""
    generator = torch.Generator().manual_seed(seed)
    share = torch.softmax(torch.randn(k, generator=generator, dtype=torch.float64), 0)
    means = torch.randn(k, d, generator=generator, dtype=torch.float64)
    return share, means, torch.rand(k, generator=generator, dtype=torch.float64) * 0.4 + 0.1
