"""Autoencoders of pictures, the first stage of latent diffusion: pictures to a small grid of latents and back.

Both halves start as the best linear code of patches (`start_from_pca`), and convolutions learn what it misses. So there is a
usable code after few steps, and without convolutions (`widths=()`) the autoencoder *is* principal component analysis.

The latents are regularised in one of two ways. With `codes = 0`, noise is added to them in training and their squares are
penalised: a variational autoencoder whose posterior variance is given instead of learned (Kingma & Welling 2014, arXiv
1312.6114; for diffusion Rombach et al. 2022, arXiv 2112.10752). Otherwise each becomes the nearest vector of a codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, max_pool2d, mse_loss, pixel_shuffle, pixel_unshuffle, silu

from diffusion_core.nets.layers import zero_init
from diffusion_core.training import parallel


class Reconstruction(NamedTuple):
    """What a training step needs."""

    x: Tensor  # the picture again, [B, channels, s, s]
    penalty: Tensor  # on the latents, [B]


class FirstStage(nn.Module):
    """What latent diffusion needs of an autoencoder: `encode` pictures, `decode` latents."""

    factor: int  # pixels along the side of one place of the latents
    latents: int  # channels
    condition: str | None = None  # key of the `map:*` condition that the decoder sees
    codebook: Codebook | None
    config: dict[str, Any]  # from which it can be built again, as JSON

    def encode(self, x: Tensor) -> Tensor:
        """Latents `[B, latents, s / factor, s / factor]` of pictures `[B, 3, s, s]`."""
        raise NotImplementedError

    def decode(self, z: Tensor, maps: Tensor | None = None) -> Tensor:
        """Pictures from latents."""
        raise NotImplementedError


class Autoencoder(FirstStage):
    """Pictures `[B, channels, s, s]` to latents `[B, latents, s / factor, s / factor]` and back; s is any multiple of factor.

    widths: channels of the convolutions at half the resolution, a quarter, ...; their number is log2(factor). Residual blocks
    at each resolution: `depth` in the encoder, depth + 1 in the decoder. Multiply-adds of a block: 18 width^2 a pixel.

    With a `condition`, the key of a `map:*` condition, the decoder sees that map too; `maps` is its number of channels, with
    factor x factor pixels as channels. A map that is withheld is zero.
    """

    def __init__(
        self,
        factor: int = 8,
        latents: int = 32,
        widths: Sequence[int] = (32, 64, 128),
        depth: int = 1,
        channels: int = 3,
        codes: int = 0,
        penalty: float = 1e-4,
        condition: str | None = None,
        maps: int = 0,
    ) -> None:
        super().__init__()
        if factor < 2 or factor & (factor - 1):
            raise ValueError(f"factor must be a power of two and at least 2, got {factor}")
        if widths and 2 ** len(widths) != factor:
            raise ValueError(f"a factor of {factor} needs {factor.bit_length() - 1} widths, got {len(widths)}")
        patch = channels * factor**2
        if not 1 <= latents <= patch:
            raise ValueError(f"latents must be between 1 and {patch}, the numbers of a patch, got {latents}")
        if (condition is None) != (maps == 0) or (condition is not None and not widths):
            raise ValueError("a condition needs maps and a decoder with convolutions")
        self.factor, self.latents, self.penalty, self.condition, self.maps = factor, latents, penalty, condition, maps
        self.config = {
            "factor": factor, "latents": latents, "widths": list(widths), "depth": depth, "channels": channels, "codes": codes,
            "penalty": penalty, "condition": condition, "maps": maps,
        }  # fmt: skip
        self.project = nn.Conv2d(patch, latents, 1)
        self.expand = nn.Conv2d(latents, patch, 1)
        self.encoder = Encoder(channels, widths, depth, latents) if widths else None
        self.decoder = Decoder(channels, widths, depth + 1, latents + maps) if widths else None
        self.codebook = Codebook(codes, latents) if codes else None

    @property
    def last_layer(self) -> Tensor:
        """The weights that pictures come from last."""
        return (self.expand if self.decoder is None else self.decoder.conv_out).weight

    def forward(self, x: Tensor, noise: Tensor, sd: Tensor, maps: Tensor | None = None) -> Reconstruction:
        """Reconstruction in training: noise `[B, latents, h, w]` of standard deviation sd `[B]` is added to the latents."""
        z = self._latents(x)
        if self.codebook is None:
            penalty = self.penalty * z.float().square().flatten(1).mean(1)
            z = z + (sd.reshape(-1, 1, 1, 1) * noise).to(z)
        else:
            z, penalty = self.codebook.straight_through(z)
        return Reconstruction(self._picture(z, maps), penalty)

    def encode(self, x: Tensor) -> Tensor:
        """The latents of pictures, without noise; with a codebook they are its vectors."""
        z = self._latents(x)
        return z if self.codebook is None else cast(Tensor, self.codebook(z))

    def decode(self, z: Tensor, maps: Tensor | None = None) -> Tensor:
        """Pictures from latents; with a codebook, from the vectors nearest to them. maps: `[B, maps, h, w]`."""
        return self._picture(z if self.codebook is None else self.codebook(z), maps)

    def _latents(self, x: Tensor) -> Tensor:
        z = self.project(pixel_unshuffle(x, self.factor))
        return cast(Tensor, z if self.encoder is None else z + self.encoder(x))

    def _picture(self, z: Tensor, maps: Tensor | None) -> Tensor:
        x = pixel_shuffle(self.expand(z), self.factor)
        if self.decoder is None:
            return x
        if self.maps:
            shown = z.new_zeros(len(z), self.maps, *z.shape[2:]) if maps is None else maps.to(z)
            z = torch.cat([z, shown], 1)
        return cast(Tensor, x + self.decoder(z))

    @torch.no_grad()
    def start_from_pca(self, x: Tensor, power: float = 0.5, padding: Tensor | None = None) -> None:
        """Set the linear maps to the principal components of the patches of pictures `[n, channels, s, s]`.

        A component of standard deviation s is divided by s^power (0: keeps its scale, 1: whitened), and all by one number, so
        that the latents have mean square 1. Patches where `padding` `[n, 1, s, s]` is not zero are left out.
        """
        patches = pixel_unshuffle(x, self.factor).permute(0, 2, 3, 1).reshape(-1, self.project.in_channels).double()
        if padding is not None:
            whole = max_pool2d(padding, self.factor).flatten() == 0
            patches = patches[whole] if whole.any() else patches
        mean = patches.mean(0)
        patches = patches - mean
        variances, vectors = torch.linalg.eigh(patches.mT @ patches / len(patches))
        variances, vectors = variances.flip(0)[: self.latents].clamp(min=1e-12), vectors.flip(1)[:, : self.latents]
        # The signs of eigh are arbitrary.
        vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
        scale = variances.sqrt() ** power
        scale = scale * (variances / scale**2).mean().sqrt()
        _set(self.project, (vectors / scale).mT, -(mean @ vectors) / scale)
        _set(self.expand, vectors * scale, mean)
        if self.codebook is not None:
            self.codebook.start_from(self._latents(x.float()))


def _set(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Fill a 1 x 1 convolution."""
    assert layer.bias is not None
    layer.weight.copy_(weight[..., None, None])
    layer.bias.copy_(bias)


class ResidualBlock(nn.Module):
    """x + two 3 x 3 convolutions, each after a SiLU; starts as the identity. Without normalisation, for speed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zero_init(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, x + self.conv2(silu(self.conv1(silu(x)))))


class Upsample(nn.Module):
    """Twice the side: a 1 x 1 convolution to four times the channels, which become pixels."""

    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inp, 4 * out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.conv(x), 2)


class Encoder(nn.Module):
    """Pixels unshuffled once, then residual blocks and strided convolutions; starts as zero."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, out: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4 * channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            if level:
                self.blocks.append(nn.Conv2d(widths[level - 1], width, 3, stride=2, padding=1))
            self.blocks.extend(ResidualBlock(width) for _ in range(depth))
        self.conv_out = zero_init(nn.Conv2d(widths[-1], out, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(pixel_unshuffle(x, 2))
        for block in self.blocks:
            h = block(h)
        return cast(Tensor, self.conv_out(h))


class Decoder(nn.Module):
    """The encoder's way back; starts as zero."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, inp: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inp, widths[-1], 3, padding=1)
        self.blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            self.blocks.extend(ResidualBlock(widths[level]) for _ in range(depth))
            if level:
                self.blocks.append(Upsample(widths[level], widths[level - 1]))
        self.conv_out = zero_init(nn.Conv2d(widths[0], 4 * channels, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        for block in self.blocks:
            h = block(h)
        return pixel_shuffle(self.conv_out(h), 2)


class Codebook(nn.Module):
    """Vectors `[codes, channels]`, each a running mean of the latents that are nearest to it.

    van den Oord et al. 2017 (arXiv 1711.00937), with the means of its appendix A.1 instead of a codebook loss. A code that is
    hardly used any more moves to a latent of the batch (Dhariwal et al. 2020, arXiv 2005.00341, section 3.1).
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self, codes: int, channels: int, decay: float = 0.97, commitment: float = 0.25, dead: float = 0.1
    ) -> None:
        super().__init__()
        self.decay, self.commitment, self.dead = decay, commitment, dead
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("vectors", torch.randn(codes, channels, generator=generator))
        self.register_buffer("counts", torch.ones(codes))  # latents of a batch that are nearest to each, running mean
        self.register_buffer("sums", self.vectors.clone())
        self._seen: list[tuple[Tensor, Tensor]] = []  # latents [N, channels] of this step and their codes [N]

    def start_from(self, z: Tensor) -> None:
        """Vectors that are evenly spaced latents of `[n, channels, h, w]`."""
        rows = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        chosen = rows[torch.linspace(0, len(rows) - 1, len(self.vectors)).round().long()]
        self.vectors.copy_(chosen)
        self.counts.fill_(1)
        self.sums.copy_(chosen)

    def nearest(self, z: Tensor) -> Tensor:
        """The number of the nearest vector of each latent: `[B, h, w]`."""
        with torch.autocast(z.device.type, enabled=False):
            rows = z.detach().float().permute(0, 2, 3, 1)
            distances = self.vectors.square().sum(1) - 2 * rows @ self.vectors.mT  # and |z|^2, the same for all
            return distances.argmin(-1)

    def forward(self, z: Tensor) -> Tensor:
        """The nearest vectors, `[B, channels, h, w]`."""
        return embedding(self.nearest(z), self.vectors).permute(0, 3, 1, 2).to(z)

    def straight_through(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest vectors, with the gradient of z, and the penalty `[B]` that draws z to them."""
        codes = self.nearest(z)
        quantised = embedding(codes, self.vectors).permute(0, 3, 1, 2).to(z)
        distances = mse_loss(z.float(), quantised.float(), reduction="none").flatten(1).mean(1)
        if self.training:
            self._seen.append((z.detach().float().permute(0, 2, 3, 1).reshape(-1, z.shape[1]), codes.flatten()))
        return z + (quantised - z).detach(), self.commitment * distances

    def begin_step(self, nimg: int) -> None:
        """Forget the latents seen so far."""
        self._seen = []

    @torch.no_grad()
    def end_step(self) -> None:
        """One step of the running means, over the latents seen on all ranks."""
        rows, codes = (torch.cat(part) for part in zip(*self._seen, strict=True))
        self._seen = []
        size = len(self.vectors)
        counts = torch.zeros_like(self.counts).index_add_(0, codes, torch.ones_like(rows[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, rows)
        evenly = torch.linspace(0, len(rows) - 1, min(size, len(rows)), device=rows.device).round().long()
        spare_rows = parallel.broadcast_tensors({"rows": rows[evenly]}, rows.device)["rows"]
        self.counts.lerp_(parallel.all_reduce_sum(counts), 1 - self.decay)
        self.sums.lerp_(parallel.all_reduce_sum(sums), 1 - self.decay)
        dead = (self.counts < self.dead).nonzero()[:, 0][: len(spare_rows)]
        self.counts[dead], self.sums[dead] = 1.0, spare_rows[: len(dead)]
        self.vectors.copy_(self.sums / self.counts[:, None])


def perplexity(codes: Tensor, size: int) -> float:
    """exp of the entropy of the codes' frequencies: how many of the `size` codes are used as if equally often."""
    share = torch.bincount(codes.flatten(), minlength=size).double() / codes.numel()
    return float(torch.special.entr(share).sum().exp())
