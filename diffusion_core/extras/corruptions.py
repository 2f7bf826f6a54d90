"""Corruptions other than added noise, for the same training and sampling loops.

All these processes predict x0. Each consists of a loss for the recipe, which corrupts x0 at time t in (0, 1), and a `Step`,
which goes to a smaller t given the estimate of x0. The noise level only encodes the time, t = 2 angle / pi.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from diffusion_core.conditioning import WEIGHT, Cond
from diffusion_core.denoiser import Denoiser, Preconditioned
from diffusion_core.losses import Weight
from diffusion_core.sampling.loop import Denoise, Estimate, Step
from diffusion_core.schedules import Level, expand_like
from diffusion_core.targets import X0, Target

Degrade = Callable[[Tensor, Tensor], Tensor]  # (x0 [B, *S], t [] or [B]) -> [B, *S]; the identity at t = 0


def process_time(level: Level) -> Tensor:
    """The time t of a level: 0 is clean, 1 is fully corrupted."""
    return level.angle * (2 / math.pi)


class Direct(Preconditioned):
    """A denoiser whose network gets x and t unscaled and predicts x0 directly."""

    def __init__(
        self, net: nn.Module, target: Target = X0, sd: float = 1.0, c_noise: Callable[[Level], Tensor] = process_time
    ) -> None:
        super().__init__(net, target, sd, c_noise)

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        t = self.c_noise(level).to(device=x.device, dtype=dtype).expand(len(x))
        if not x.is_floating_point():  # tokens
            logits: Tensor = self.net(x, t, cond or {})
            return logits
        typed = {k: v.to(dtype) if v.is_floating_point() else v for k, v in (cond or {}).items()}
        x0: Tensor = self.net(x.to(dtype), t, typed)
        return x0.to(x.dtype)


# Cold diffusion


def cold_loss(degrade: Degrade) -> Callable[..., Tensor]:
    """Mean absolute error of the restored x0, `[B]`. Bansal et al. 2022 (arXiv 2208.09392), eq. 1.

    Condition `weight:x` weighs the coordinates.
    """

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        error = (denoiser(degrade(x0, process_time(level).to(x0)), level, cond) - x0).abs()
        if WEIGHT in cond:
            error = error * cond[WEIGHT]
        return error.flatten(1).mean(1)

    return loss


def cold(degrade: Degrade) -> Step:
    """x - C(x0, t) + C(x0, t'), where C is `degrade`. With C = a x0 + s eps_hat this is DDIM.

    Bansal et al. 2022 (arXiv 2208.09392), algorithm 2.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        level, x, x0 = history[-1][:3]
        return x - degrade(x0, process_time(level).to(x0)) + degrade(x0, process_time(to).to(x0))

    return step


def blur_degradation(widest: float) -> Degrade:
    """Gaussian blur of pictures `[B, C, H, W]` with a standard deviation of t * widest pixels, in the cosine basis."""

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        rows, columns = cosine_basis(x0.shape[-2]).to(x0), cosine_basis(x0.shape[-1]).to(x0)
        width = expand_like(t * widest, x0)
        squares = [(math.pi * torch.arange(n).to(x0) / n) ** 2 for n in x0.shape[-2:]]
        keep = torch.exp(-(width**2) / 2 * (squares[0][:, None] + squares[1]))
        return rows.T @ ((rows @ x0 @ columns.T) * keep) @ columns

    return degrade


def cosine_basis(n: int) -> Tensor:
    """The orthonormal discrete cosine transform, `[n, n]` float64, one basis vector per row."""
    index = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (index + 0.5) * index[:, None] / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def mask_degradation(mask: Tensor) -> Degrade:
    """Values where mask `[*S]` is 1 are multiplied by 1 - t."""
    return lambda x0, t: x0 * (1 - expand_like(t, x0) * mask.to(x0))


def downsample_degradation(factor: int) -> Degrade:
    """Pictures blended linearly in t with their averages over squares of factor x factor pixels."""

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        low = torch.nn.functional.avg_pool2d(x0, factor)
        return torch.lerp(x0, low.repeat_interleave(factor, -1).repeat_interleave(factor, -2), expand_like(t, x0))

    return degrade


def rows_degradation(share: float) -> Degrade:
    """The last `share` of the rows, dimension -2 of x0, fade to 0: the lower part of a picture, or the last of its tokens."""

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        count = x0.shape[-2]
        mask = (torch.arange(count, device=x0.device) >= round(count * (1 - share))).to(x0)[:, None]
        return x0 * (1 - expand_like(t, x0) * mask)

    return degrade


class GaussianStart:
    """The normal distribution that fits fully degraded examples, from which cold sampling starts.

    Bansal et al. 2022 (arXiv 2208.09392), section 5.2, fit a mixture of normal distributions to them. `mean` `[*S]`;
    `factors` `[rank, *S]`, the principal directions times their standard deviations.
    """

    RANK = 64

    def __init__(self, mean: Tensor, factors: Tensor) -> None:
        self.mean, self.factors = mean, factors

    @classmethod
    def fit(cls, degrade: Degrade, x0: Tensor) -> GaussianStart:
        """The distribution of examples x0 `[n, *S]`, degraded at t = 1."""
        degraded = degrade(x0.double(), torch.ones((), dtype=torch.float64))
        mean = degraded.mean(0)
        _, sds, directions = torch.linalg.svd((degraded - mean).flatten(1), full_matrices=False)
        kept = sds[: cls.RANK] / math.sqrt(max(len(x0) - 1, 1))
        factors = (kept[:, None] * directions[: cls.RANK]).reshape(-1, *x0.shape[1:])
        return cls(mean.float(), factors.float())

    def __call__(self, noise: Tensor) -> Tensor:
        """Samples `[B, *S]` from standard normal noise `[B, *S]`, of which the first `rank` numbers of each row are used."""
        weights = noise.flatten(1)[:, : len(self.factors)]
        drawn = weights @ self.factors[: weights.shape[1]].flatten(1).to(noise)
        return self.mean.to(noise) + drawn.reshape(noise.shape)


# Masked diffusion over tokens


def masked_share(t: Tensor) -> Tensor:
    """The share of tokens masked at time t, sin(pi t / 2). Chang et al. 2022 (arXiv 2202.04200), the cosine schedule."""
    return torch.sin(t * math.pi / 2)


def masked_loss(mask: int) -> Callable[..., Tensor]:
    """Cross-entropy averaged over each example's masked tokens, `[B]`. Chang et al. 2022 (arXiv 2202.04200), eq. 1.

    x0 `[B, N]` are integers below `mask`, and `mask` is the mask token. The denoiser returns logits `[B, N, mask]`.
    """

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        masked = torch.special.ndtr(noise) < masked_share(process_time(level))[:, None].to(noise)
        logits = denoiser(torch.where(masked, mask, x0), level, cond)
        nll = cross_entropy(logits.transpose(1, 2), x0, reduction="none")
        mean: Tensor = (nll * masked).sum(1) / masked.sum(1).clamp(min=1)
        return mean

    return loss


def unmask(mask: int, temperature: float = 1.0) -> Step:
    """Draw all masked tokens, keep those with the highest confidence, and mask the others again. Kept tokens do not change.

    Confidence is (1 - temperature) times the log-probability of the drawn token plus temperature times Gumbel noise. At
    temperature 1 the order is random, so that every token has the probability that the denoiser gives it; lower temperatures
    prefer likely tokens. (The papers' confidence, log-probability plus noise, prefers them at every temperature.) The noise
    stream gives `[B, N, mask]` normal numbers. Chang et al. 2022 (arXiv 2202.04200), section 3.2; Muse (arXiv 2301.00704),
    section 2.8.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        x, logits = history[-1].x, history[-1].x0
        masked = x == mask
        drawn = torch.where(masked, (logits + _gumbel(next(noise))).argmax(-1), x)
        log_p = torch.log_softmax(logits, -1).gather(-1, drawn[..., None])[..., 0]
        confidence = (1 - temperature) * log_p + temperature * _gumbel(next(noise))[..., 0]
        confidence = confidence.masked_fill(~masked, torch.inf)
        wanted = torch.floor(masked_share(process_time(to)) * x.shape[1]).to(x.device)
        count = torch.minimum(wanted, masked.sum(1) - 1).clamp(min=0)  # at least one token is kept
        rank = confidence.argsort(1).argsort(1)
        return torch.where(rank < count[:, None], mask, drawn)

    return step


def _gumbel(normal: Tensor) -> Tensor:
    return -torch.log(-torch.special.log_ndtr(normal.double()))
