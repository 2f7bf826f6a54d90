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

from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.losses import Weight
from diffusion_core.sampling.loop import Denoise, Estimate, Step
from diffusion_core.schedules import Level, expand_like

Degrade = Callable[[Tensor, Tensor], Tensor]  # (x0 [B, *S], t [] or [B]) -> [B, *S]; the identity at t = 0


def process_time(level: Level) -> Tensor:
    """The time t of a level: 0 is clean, 1 is fully corrupted."""
    return level.angle * (2 / math.pi)


class Direct(nn.Module):
    """A denoiser whose network gets x and t unscaled and predicts x0 directly."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        t = process_time(level).to(device=x.device, dtype=dtype).expand(len(x))
        if not x.is_floating_point():  # tokens
            logits: Tensor = self.net(x, t, cond or {})
            return logits
        x0: Tensor = self.net(x.to(dtype), t, cond or {})
        return x0.to(x.dtype)


# Cold diffusion


def cold_loss(degrade: Degrade) -> Callable[..., Tensor]:
    """Mean absolute error of the restored x0, `[B]`. Bansal et al. 2022 (arXiv 2208.09392), eq. 1."""

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        return (denoiser(degrade(x0, process_time(level).to(x0)), level, cond) - x0).abs().flatten(1).mean(1)

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
