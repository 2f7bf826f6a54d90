"""Codecs: `encode` maps data units to the units that the network sees, `decode` maps back.

Diffusion runs in the network's units. Any object with these two methods is a codec; the affine one is enough for poses and
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

        The mean is per coordinate or a single number. The scale is always a single number, so that shapes are preserved.
        Raises ValueError if all examples are equal.
        """
        mean = x0.mean(0) if per_coordinate else x0.mean()
        rms = (x0 - mean).square().mean().sqrt()
        if not rms > 0:
            raise ValueError("all examples are the same, so they have no scale")
        return cls(mean, rms / sd)

    def encode(self, x0: Tensor) -> Tensor:
        """Data units to network units."""
        return (x0 - self.mean.to(x0.device)) / self.scale.to(x0.device)

    def decode(self, z: Tensor) -> Tensor:
        """Network units to data units."""
        return z * self.scale.to(z.device) + self.mean.to(z.device)
