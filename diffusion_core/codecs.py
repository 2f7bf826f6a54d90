"""Codecs: `encode` maps data units to the units that the network sees, `decode` maps back.

Diffusion runs in the network's units. Any object with these two methods is a codec. The affine one is enough for poses and
small pictures; larger pictures become latents of an autoencoder, which costs less and is learned faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_core.conditioning import Cond, kept
from diffusion_core.nets.autoencoder import Codebook, FirstStage
from diffusion_core.training.compute import computes_bf16


@dataclass(frozen=True)
class Affine:
    """z = (x - mean) / scale, and back."""

    mean: Tensor  # broadcasts against one example [*S]
    scale: Tensor  # []
    factor: int = 1  # pixels along the side of what becomes one place in the network's units

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

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Network units to data units, whatever the conditions."""
        return z * self.scale.to(z.device) + self.mean.to(z.device)


@dataclass(frozen=True)
class Sharpened(Affine):
    """An affine codec for clips `[n, frames, *S]` that amplifies changes from frame to frame.

    After the affine map, W = (I + gain^2 D^T D)^(1/2) is applied along the frames, where D takes the difference of consecutive
    frames. So the square of an error is |e|^2 + gain^2 |D e|^2: its position, and gain^2 times its velocity. The same holds for
    the noise, whose velocities become about 1 / gain as large. Constant clips stay as they are, and examples without frames
    `[n, *S]` are only mapped affinely.
    """

    gain: float = 0.0

    @classmethod
    def of(cls, x0: Tensor, sd: float, gain: float) -> Sharpened:
        """That of clips `[n, frames, *S]`: a mean for each coordinate of a frame, and root mean square `sd` of all.

        Raises ValueError if all frames are equal.
        """
        mean = Affine.fit(x0.flatten(0, 1), sd, per_coordinate=True).mean
        unit = cls(mean, torch.ones(()), gain=gain)
        return cls(mean, unit.encode(x0).square().mean().sqrt() / sd, gain=unit.gain)

    def encode(self, x0: Tensor) -> Tensor:
        """Data units to network units."""
        return self._along_frames(super().encode(x0), 0.5)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Network units to data units, whatever the conditions."""
        return super().decode(self.smoothed(z))

    def smoothed(self, z: Tensor) -> Tensor:
        """Clips in the network's units without W: as the affine map alone would give them."""
        return self._along_frames(z, -0.5)

    def _along_frames(self, x: Tensor, power: float) -> Tensor:
        """(I + gain^2 D^T D)^power applied along the frames. The cosine transform (DCT-II) diagonalises D^T D."""
        if x.ndim <= self.mean.ndim + 1:
            return x
        frames = x.shape[1]
        k = torch.arange(frames, dtype=torch.float64)
        basis = torch.cos(torch.pi * (k[:, None] + 0.5) * k / frames) * math.sqrt(2 / frames)
        basis[:, 0] = math.sqrt(1 / frames)
        eigenvalues = 2 - 2 * torch.cos(torch.pi * k / frames)
        matrix = (basis * (1 + self.gain**2 * eigenvalues) ** power) @ basis.T
        return torch.einsum("st,nt...->ns...", matrix.to(x), x)


class Latent:
    """An autoencoder as a codec: pictures `[n, C, s, s]` to latents with mean 0 in each channel and a given variance, and back.

    Clips `[n, frames, C, s, s]` become clips of latents, frame by frame.

    The autoencoder is applied to BATCH pictures at a time and is not trained. It computes in bfloat16 on devices of a kind
    in BF16_DEVICES whose hardware multiplies it.
    """

    BATCH = 128
    BF16_DEVICES: tuple[str, ...] = ("cpu", "cuda")

    def __init__(self, net: FirstStage, mean: Tensor, scale: Tensor) -> None:
        self.net = net.eval().requires_grad_(False)
        self.mean = mean  # of each channel, [channels, 1, 1]
        self.scale = scale  # standard deviation of the latents over that of the network's units, []

    @property
    def factor(self) -> int:
        """Pixels along the side of a latent."""
        return self.net.factor

    def computes_bf16(self, device: torch.device) -> bool:
        """Whether it computes in bfloat16 on this device."""
        return device.type in self.BF16_DEVICES and computes_bf16(device)

    @classmethod
    def fit(cls, net: FirstStage, x0: Tensor, sd: float) -> Latent:
        """The codec that gives the latents of pictures x0 mean 0 in each channel and root mean square `sd` in all.

        One scale for all channels: those with the large variances decide how a picture looks, and so they keep their weight.
        Raises ValueError if all pictures are equal.
        """
        z = cls(net, torch.zeros(net.latents, 1, 1), torch.ones(())).encode(x0)
        mean = z.mean((0, 2, 3))[:, None, None]
        spread = (z - mean).square().mean().sqrt()
        if not spread > 0:
            raise ValueError("all pictures are equal, so their latents have no scale")
        return cls(net, mean, spread / sd)

    def encode(self, x0: Tensor) -> Tensor:
        """Pictures to network units."""
        if x0.ndim == 5:
            return torch.unflatten(self.encode(x0.flatten(0, 1)), 0, x0.shape[:2])
        z = self._batched(self.net.encode, x0)
        return (z - self.mean.to(z)) / self.scale.to(z)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Network units to pictures. cond: conditions as a model of these latents gets them."""
        z = (z * self.scale.to(z) + self.mean.to(z)).float()
        maps = None
        if self.net.condition is not None and cond is not None:
            maps = kept(self.net.condition, cond)
        given = (z,) if maps is None else (z, maps.to(z))
        if z.ndim == 5:
            return torch.unflatten(self._batched(self.net.decode, *(x.flatten(0, 1) for x in given)), 0, z.shape[:2])
        return self._batched(self.net.decode, *given)

    def _batched(self, function: Callable[..., Tensor], *values: Tensor) -> Tensor:
        device = values[0].device
        self.net.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.computes_bf16(device)):
            parts = [function(*part).float() for part in zip(*(x.split(self.BATCH) for x in values), strict=True)]
        return torch.cat(parts) if parts else values[0].new_zeros(0)


class Tokens(Latent):
    """An autoencoder with a codebook as a codec: pictures `[n, C, s, s]` to the numbers of codes, int64 `[n, N]`, and back.

    The codes are those of the latents row by row, N = (s / factor)^2.
    """

    @classmethod
    def of(cls, latent: Latent) -> Tokens:
        """The codes of a codec. Raises ValueError if it has no codebook."""
        if latent.net.codebook is None:
            raise ValueError("codes need a codec with a codebook")
        return cls(latent.net, latent.mean, latent.scale)

    @property
    def codes(self) -> int:
        """The number of codes."""
        return len(self._book.vectors)

    @property
    def _book(self) -> Codebook:
        assert self.net.codebook is not None
        return self.net.codebook

    def encode(self, x0: Tensor) -> Tensor:
        """Pictures to codes."""
        z = self._batched(self.net.encode, x0)
        return self._book.nearest(z).flatten(1)

    def decode(self, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Codes to pictures."""
        self.net.to(z.device)
        side = round(z.shape[1] ** 0.5)
        vectors = self._book.vectors[z].transpose(1, 2).unflatten(2, (side, side))
        return super().decode((vectors - self.mean.to(vectors)) / self.scale.to(vectors), cond)
