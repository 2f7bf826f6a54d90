"""Corruptions other than added noise, in the same training and sampling loops.

Every process here predicts the clean thing, so it is two functions: how x0 is corrupted at time t in (0, 1), which makes
a `loss` for the recipe, and how x moves given the clean estimate, which is a `Step`. Levels are only the clock:
t = 2 angle / pi.
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
from diffusion_core.sampling.loop import Estimate, Step
from diffusion_core.sampling.solvers import Denoise
from diffusion_core.schedules import Level, expand_like

Degrade = Callable[[Tensor, Tensor], Tensor]  # (x0 [B, *S], t [] or [B]) -> [B, *S]; the identity at t = 0


def process_time(level: Level) -> Tensor:
    """The process time of a level, 0 clean and 1 all corrupted."""
    return level.angle * (2 / math.pi)


class Direct(nn.Module):
    """A net that sees x and t as they are and predicts the clean thing itself."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Level, cond: Cond | None = None) -> Tensor:
        dtype = next(self.net.parameters()).dtype
        t = process_time(level).to(device=x.device, dtype=dtype).expand(len(x))
        if not x.is_floating_point():
            return self.net(x, t, cond or {})
        return self.net(x.to(dtype), t, cond or {}).to(x.dtype)


# Cold diffusion


def cold_loss(degrade: Degrade) -> Callable[..., Tensor]:
    """Mean absolute error of the restoration. Bansal et al. 2022 (arXiv 2208.09392), eq. 1."""

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        return (denoiser(degrade(x0, process_time(level).to(x0)), level, cond) - x0).abs().flatten(1).mean(1)

    return loss


def cold(degrade: Degrade) -> Step:
    """x - C(x0, t) + C(x0, t'): algorithm 2 of the same paper. With C = a x0 + s eps_hat it is DDIM."""

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        here = history[-1]
        x0 = here.x0
        return here.x - degrade(x0, process_time(here.level).to(x0)) + degrade(x0, process_time(to).to(x0))

    return step


def blur_degradation(widest: float) -> Degrade:
    """Gaussian blur of pictures `[B, C, H, W]` by t * widest pixels (standard deviation), a factor in the cosine basis."""

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        rows, columns = cosine_basis(x0.shape[-2]).to(x0), cosine_basis(x0.shape[-1]).to(x0)
        width = expand_like(t * widest, x0)
        squares = [(math.pi * torch.arange(n).to(x0) / n) ** 2 for n in x0.shape[-2:]]
        keep = torch.exp(-(width**2) / 2 * (squares[0][:, None] + squares[1]))
        return rows.T @ ((rows @ x0 @ columns.T) * keep) @ columns

    return degrade


def cosine_basis(n: int) -> Tensor:
    """The orthonormal discrete cosine transform, `[n, n]` float64, one basis vector a row."""
    place = torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (place + 0.5) * place[:, None] / n) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis


def mask_degradation(mask: Tensor) -> Degrade:
    """The values where mask `[*S]` is 1 fade to 0 with t."""
    return lambda x0, t: x0 * (1 - expand_like(t, x0) * mask.to(x0))


def downsample_degradation(factor: int) -> Degrade:
    """Pictures blended with t into their averages over squares of factor x factor pixels."""

    def degrade(x0: Tensor, t: Tensor) -> Tensor:
        low = torch.nn.functional.avg_pool2d(x0, factor)
        return torch.lerp(x0, low.repeat_interleave(factor, -1).repeat_interleave(factor, -2), expand_like(t, x0))

    return degrade


# Masked diffusion over tokens


def masked_share(t: Tensor) -> Tensor:
    """The share of tokens masked at time t, sin(pi t / 2). Chang et al. 2022 (arXiv 2202.04200), their cosine schedule."""
    return torch.sin(t * math.pi / 2)


def masked_loss(mask: int) -> Callable[..., Tensor]:
    """Cross-entropy of the masked tokens: x0 `[B, N]` of integers below `mask`, which is the token that hides.

    The denoiser returns logits `[B, N, mask]`. Chang et al. 2022, eq. 1, averaged over each example's masked tokens.
    """

    def loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor, weight: Weight, cond: Cond) -> Tensor:
        hidden = torch.special.ndtr(noise) < masked_share(process_time(level))[:, None].to(noise)
        logits = denoiser(torch.where(hidden, mask, x0), level, cond)
        each = cross_entropy(logits.transpose(1, 2), x0, reduction="none")
        return (each * hidden).sum(1) / hidden.sum(1).clamp(min=1)

    return loss


def unmask(mask: int, temperature: float = 1.0) -> Step:
    """Draw every masked token, keep the most confident, mask the rest again; tokens once shown stay.

    Confidence is the drawn token's log-probability plus Gumbel noise of this temperature times t. The noise stream gives
    `[B, N, mask]` normal numbers. Chang et al. 2022 (arXiv 2202.04200), section 3.2; Muse (arXiv 2301.00704), section 2.
    """

    def step(history: list[Estimate], to: Level, _: Denoise, noise: Iterator[Tensor]) -> Tensor:
        x, logits = history[-1].x, history[-1].x0
        hidden = x == mask
        drawn = torch.where(hidden, (logits + _gumbel(next(noise))).argmax(-1), x)
        sure = torch.log_softmax(logits, -1).gather(-1, drawn[..., None])[..., 0]
        sure = sure + temperature * float(process_time(history[-1].level)) * _gumbel(next(noise))[..., 0]
        sure = sure.masked_fill(~hidden, torch.inf)
        wanted = torch.floor(masked_share(process_time(to)) * x.shape[1]).to(x.device)
        again = torch.minimum(wanted, hidden.sum(1) - 1).clamp(min=0)  # at least one more is shown
        rank = sure.argsort(1).argsort(1)
        return torch.where(rank < again[:, None], mask, drawn)

    return step


def _gumbel(normal: Tensor) -> Tensor:
    return -torch.log(-torch.special.log_ndtr(normal.double()))
