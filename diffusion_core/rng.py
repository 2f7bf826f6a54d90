"""Random numbers as a pure function of (seed, id): a row does not depend on the batch in which it is drawn.

A counter is hashed with SplitMix64 (Steele, Lea & Flood 2014), so there is no generator state to save. A sample has the same
noise in any batch, a training example has the same noise on any number of ranks, and CPU and GPU draw the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum

import torch
from torch import Tensor

Seed = int | tuple[int, ...]


class Stream(IntEnum):
    """What a random draw of a training run is for: folded into the run's seed, so that different purposes get unrelated draws.

    The numbers decide every result, so never change or reuse one.
    """

    ORDER = 0  # which example is shown
    LEVEL = 1  # noise level of an example
    NOISE = 2
    CONDITION_DROPOUT = 3
    DROPOUT = 4  # torch's global generator: dropout masks, self-conditioning
    EVALUATION = 5  # noise of `monitoring.evaluate`
    VARIANCE = 6  # noise with which the variance of x0 is measured
    TRANSFORM = 7  # augmentation and changes of conditions, see `TransformStream`
    WATCH = 9  # losses and samples looked at while training
    JITTER = 10  # size and place of the copies of a picture
    CROP = 12  # place of a crop in its picture
    DISCRIMINATOR = 20  # first weights of a codec's discriminator


class TransformStream(IntEnum):
    """What a draw inside `Stream.TRANSFORM` is for."""

    AUGMENTATION = 0
    CONDITION_LEVEL = 1  # how noisy a condition is made
    CONDITION_NOISE = 2
    SINGLE_CONDITION_DROPOUT = 3
    STILLS = 4  # which single poses or pictures ride along with a clip


_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit number
_SHARED = 1_000_003  # folded into the seed of noise that frames share; far from the numbers of draws
_MIX1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _shift(z: Tensor, k: int) -> Tensor:
    return (z >> k) & ((1 << (64 - k)) - 1)  # a logical shift: torch's is arithmetic and copies the sign bit


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


def fold(seed: Seed, *more: int) -> int:
    """Hash several numbers to one 63-bit seed; different tuples give unrelated seeds."""
    key = 0
    for part in (*(seed if isinstance(seed, tuple) else (seed,)), *more):
        z = (key + part + 1) * 0x9E3779B97F4A7C15 & _MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        key = z ^ z >> 31
    return key >> 1


def bits(seed: Seed, ids: Tensor, count: int) -> Tensor:
    """Random 64-bit integers `[B, count]` for ids `[B]`, on the ids' device."""
    start = _mix(ids.long() * _GOLDEN + fold(seed))
    counter = torch.arange(1, count + 1, device=ids.device) * _GOLDEN
    return _mix(_mix(start)[:, None] + counter)


def uniform(shape: Sequence[int], seed: Seed, ids: Tensor) -> Tensor:
    """Uniform numbers in the open interval (0, 1), `[B, *shape]` float64."""
    draws = _shift(bits(seed, ids, math.prod(shape)), 12).double()  # 52 bits, so that adding 0.5 is exact
    return ((draws + 0.5) * 2.0**-52).reshape(len(ids), *shape)


def normal(shape: Sequence[int], seed: Seed, ids: Tensor) -> Tensor:
    """Standard normal numbers `[B, *shape]` float32, by the Box-Muller transform in float64.

    Rounding to float32 hides that vectorised and scalar kernels differ in the last bit of a double.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    u = uniform((2 * half,), seed, ids)
    radius = torch.sqrt(-2 * torch.log(u[:, :half]))
    angle = 2 * math.pi * u[:, half:]
    draws = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]
    return draws.float().reshape(len(ids), *shape)


Noise = Callable[[Sequence[int], Seed, Tensor], Tensor]  # (shape, seed, ids [B]) -> [B, *shape], mean 0, variance 1


def gamma(k: int) -> Noise:
    """Gamma noise with integer shape parameter k, centred and scaled. Nachmani et al. 2021 (arXiv 2106.07582)."""

    def draw(shape: Sequence[int], seed: Seed, ids: Tensor) -> Tensor:
        sums = -uniform((k, *shape), seed, ids).log().sum(1)
        return ((sums - k) / math.sqrt(k)).float()

    return draw


def shared(noise: Noise, share: float) -> Noise:
    """Noise for clips `[F, *S]` of which this share of the variance is the same in all frames.

    "Mixed noise" of PYoCo (Ge et al. 2023, arXiv 2305.10474), with share = alpha^2 / (1 + alpha^2). Each frame alone
    has the law of `noise`, if that is normal.
    """

    def draw(shape: Sequence[int], seed: Seed, ids: Tensor) -> Tensor:
        common = noise(shape[1:], fold(seed, _SHARED), ids)[:, None]
        return math.sqrt(share) * common + math.sqrt(1 - share) * noise(shape, seed, ids)

    return draw


def stream(
    shape: Sequence[int], seed: Seed, ids: Tensor, dtype: torch.dtype = torch.float32, noise: Noise = normal
) -> Iterator[Tensor]:
    """An endless stream of independent noise `[B, *shape]`; draw k uses the seed folded with k."""
    draw = 0
    while True:
        yield noise(shape, fold(seed, draw), ids).to(dtype)
        draw += 1
