"""Codecs: from data units to what the network sees, `encode`, and back, `decode`.

Diffusion happens in the network's units. Anything with the two methods is a codec; the affine one is enough for poses and
pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """z = (x - mean) / scale, and back."""

    mean: Tensor  # broadcasts against one example [*S]
    scale: Tensor  # []

    @classmethod
    def fit(cls, x0: Tensor, sd: float, per_coordinate: bool) -> Affine:
        """The codec that gives the examples `[n, *S]` mean 0 and root mean square `sd`.

        One mean a coordinate, or one for all; always one scale, so that shapes are kept. Raises ValueError if the examples do
        not differ.
        """
        mean = x0.mean(0) if per_coordinate else x0.mean()
        spread = (x0 - mean).square().mean().sqrt()
        if not spread > 0:
            raise ValueError("the examples are all the same, so they have no scale")
        return cls(mean, spread / sd)

    def encode(self, x0: Tensor) -> Tensor:
        """Data units to network units."""
        return (x0 - self.mean.to(x0.device)) / self.scale.to(x0.device)

    def decode(self, z: Tensor) -> Tensor:
        """Network units to data units."""
        return z * self.scale.to(z.device) + self.mean.to(z.device)
