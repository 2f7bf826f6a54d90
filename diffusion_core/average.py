"""Averages of the weights over training, on a clock of images seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Decay = Callable[
    [int, int], float
]  # (images seen after the step, images in the step) -> how much of the old average is kept


def halflife(images: float, warmup: float = 0.05) -> Decay:
    """Exponential averaging that halves a weight's share every `images` images, sooner in the beginning.

    The half-life is at most `warmup` times the images seen, so that the start is forgotten (Karras et al. 2022, training code
    of arXiv 2206.00364). 0 images: no averaging.
    """

    def decay(nimg: int, batch: int) -> float:
        half = min(images, warmup * nimg)
        return 0.5 ** (batch / half) if half > 0 else 0.0

    return decay


class Average:
    """A running average of named parameters. Not a module: it is state beside the model, in the parameters' type."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: Decay) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], nimg: int, batch: int) -> None:
        """Take in the parameters after a step of `batch` images that ended at `nimg` images."""
        keep = self.decay(nimg, batch)
        torch._foreach_lerp_(
            list(self.weights.values()), [parameters[name].detach() for name in self.weights], 1 - keep
        )
