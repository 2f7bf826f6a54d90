"""Likelihoods of discrete values, and levels at which a variational bound is estimated with little variance.

A *decoder* is the last factor of the bound, p(x0 | x) at the least noisy level. For data with `bins` values, evenly spaced from
-1 to 1, such as 8-bit pictures, it gives each value the probability of the interval around it; the first and the last interval
reach to infinity. `vdm.bits_per_dim` takes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diffusion_core import rng
from diffusion_core.conditioning import Cond
from diffusion_core.denoiser import Denoiser
from diffusion_core.schedules import Level, NoiseSchedule, logsnr_level

# (x0 [B, *S], x at the least noisy level, this level, the estimate of x0) -> log p(x0 | x) in nats, [B].
Decoder = Callable[[Tensor, Tensor, Level, Tensor], Tensor]

TINY = 1e-12


def normal_decoder(x0: Tensor, x: Tensor, level: Level, estimate: Tensor) -> Tensor:
    """The density of a normal law with mean x / a and standard deviation sigma, for continuous data."""
    a, s = level.like(x)
    error = (a * x0 - x) / s
    log_p: Tensor = -0.5 * (error.square() + math.log(2 * math.pi) + 2 * torch.log(s / a)).flatten(1).sum(1)
    return log_p


def discrete_decoder(bins: int = 256) -> Decoder:
    """DDPM's discrete decoder: the intervals of a normal law around the estimate, of standard deviation sigma.

    Ho et al. 2020 (arXiv 2006.11239), eq. 13.
    """

    def log_p(x0: Tensor, x: Tensor, level: Level, estimate: Tensor) -> Tensor:
        _, sigma = Level(level.a, level.sigma).like(x)
        lower, upper = _edges(x0, bins)
        low, high = (lower - estimate) / sigma, (upper - estimate) / sigma
        # Far above the mean the difference of two values near 1 is lost: there, take that of the mirror image.
        mirrored = low > 0
        low, high = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
        mass = torch.special.ndtr(high) - torch.special.ndtr(low)
        # Beyond some 38 standard deviations both are 0: the log density at the nearer edge times the width.
        far = -0.5 * high.square() - torch.log(high.abs().clamp(min=1)) - 0.5 * math.log(2 * math.pi)
        out: Tensor = torch.where(mass > 1e-290, torch.log(mass.clamp(min=1e-290)), far).flatten(1).sum(1)
        return out

    return log_p


def logistic_decoder(bins: int = 256) -> Decoder:
    """The intervals of a logistic law around the estimate that has the variance sigma^2: one component without a network."""

    def log_p(x0: Tensor, x: Tensor, level: Level, estimate: Tensor) -> Tensor:
        _, sigma = Level(level.a, level.sigma).like(x)
        scale = torch.log(sigma * math.sqrt(3) / math.pi).expand_as(estimate)
        return discretised_logistic(x0, estimate, scale, bins).flatten(1).sum(1)

    return log_p


def _edges(x0: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The ends of the interval of each value."""
    half = 1 / (bins - 1)
    lower = torch.where(x0 < -1 + half, -torch.inf, x0 - half)
    upper = torch.where(x0 > 1 - half, torch.inf, x0 + half)
    return lower, upper


def discretised_logistic(x0: Tensor, mean: Tensor, log_scale: Tensor, bins: int = 256) -> Tensor:
    """log p of each value under a logistic law integrated over its interval, with the shape that all three broadcast to.

    Salimans et al. 2017 (arXiv 1701.05517), eq. 2. With the ends u and v of the interval in scales, sigmoid(v) - sigmoid(u) =
    sigmoid(v) sigmoid(-u) (1 - exp(u - v)), whose logarithm is exact in both tails.
    """
    half = 1 / (bins - 1)
    rate = torch.exp(-log_scale)
    # Finite also where an end is infinite, whose gradient would not be a number; its term is then left out.
    low, high = (x0 - half - mean) * rate, (x0 + half - mean) * rate
    first, last = x0 < -1 + half, x0 > 1 - half
    inside = torch.log(-torch.expm1(-(2 * half * rate).clamp(min=TINY)))
    above = torch.where(last, 0, logsigmoid(high))
    below = torch.where(first, 0, logsigmoid(-low))
    return above + below + torch.where(first | last, 0, inside)


class LogisticMixture(nn.Module):
    """PixelCNN++'s discretised mixture of logistics as a decoder of pictures `[B, C, H, W]` or vectors `[B, d]`.

    `net`: x `[B, *S]` -> `[B, parameters_of(channels, components), ...]`. The mixture is over all channels of a place together:
    the mean of a channel is shifted by the values of the channels before it, in proportion to learned coefficients in (-1, 1).
    Salimans et al. 2017 (arXiv 1701.05517), section 2.2. Means are relative to x / a, log scales to log sigma; a network that
    returns zeros is one logistic law around x / a.
    """

    def __init__(self, net: nn.Module, channels: int, components: int = 5, bins: int = 256) -> None:
        super().__init__()
        self.net, self.channels, self.components, self.bins = net, channels, components, bins

    @staticmethod
    def parameters_of(channels: int, components: int) -> int:
        """Numbers that the network returns for each place."""
        return components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def forward(self, x0: Tensor, x: Tensor, level: Level, estimate: Tensor) -> Tensor:
        a, s = level.like(x)
        raw = self.net((x / torch.hypot(a, s)).to(next(self.net.parameters()).dtype)).to(x)
        return self.log_p(x0, x / a, torch.log(s / a), raw).flatten(1).sum(1)

    def log_p(self, x0: Tensor, centre: Tensor, log_sigma: Tensor, raw: Tensor) -> Tensor:
        """log p of each place, `[B, places]`. centre: x / a; log_sigma broadcasts; raw: what the network returned."""
        c, k = self.channels, self.components
        places = x0.reshape(len(x0), c, -1)  # [B, C, places]
        raw = raw.reshape(len(x0), self.parameters_of(c, k), -1)
        weight, mean, scale, coefficient = raw.split([k, c * k, c * k, k * (c * (c - 1) // 2)], 1)
        mean = mean.unflatten(1, (c, k)) + centre.reshape(len(x0), c, 1, -1)
        shift = torch.tanh(coefficient).unflatten(1, (-1, k)) if c > 1 else None
        base = log_sigma.reshape(-1, *[1] * 3) + math.log(math.sqrt(3) / math.pi)
        log_scale = scale.unflatten(1, (c, k)) + base
        total = torch.log_softmax(weight, 1)
        index = 0
        for channel in range(c):
            own = mean[:, channel]
            for before in range(channel):
                assert shift is not None
                own = own + shift[:, index] * (places[:, before] - centre.reshape(len(x0), c, -1)[:, before])[:, None]
                index += 1
            total = total + discretised_logistic(
                places[:, channel, None].expand_as(own), own, log_scale[:, channel], self.bins
            )
        return torch.logsumexp(total, 1)


@dataclass(frozen=True)
class LevelProposal:
    """A piecewise constant density of the log-SNR: `edges` `[n + 1]` rise, `masses` `[n]` sum to 1.

    `controls` `[n]`: the coefficient of the control variate in each piece, see `integrand`; None: sigmoid(log-SNR)^2.
    """

    edges: Tensor
    masses: Tensor
    controls: Tensor | None = None

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-SNRs, their densities and the coefficients of the control variate, for uniform numbers u `[B]`."""
        below = torch.cat([self.masses.new_zeros(1), self.masses.cumsum(0)]).to(u)
        piece = torch.searchsorted(below, u.contiguous()).sub(1).clamp(0, len(self.masses) - 1)
        width, mass = self.edges.diff().to(u)[piece], self.masses.to(u)[piece]
        logsnr = self.edges.to(u)[piece] + ((u - below[piece]) / mass).clamp(0, 1) * width
        control = torch.sigmoid(logsnr) ** 2 if self.controls is None else self.controls.to(u)[piece]
        return logsnr, mass / width, control


def even_levels(lowest: float, highest: float) -> LevelProposal:
    """The uniform density."""
    edges = torch.tensor([lowest, highest], dtype=torch.float64)
    return LevelProposal(edges, torch.ones(1, dtype=torch.float64))


def integrand(error: Tensor, logsnr: Tensor, noise: Tensor, control: Tensor) -> Tensor:
    """What is averaged over levels: half of SNR x squared error a dimension, less a control variate, `[B]` nats.

    The control variate is the difference of noise^2 from its mean 1, times a coefficient. At little noise x0 is estimated with
    an error of sigma x noise, so SNR x error is close to noise^2 and the best coefficient is 1; at much noise it is 0. For
    normal data of variance v it is sigmoid(log-SNR + log v)^2.
    """
    return (logsnr.exp() * error - control * _excess(noise)) / 2


def _excess(noise: Tensor) -> Tensor:
    return noise.double().square().flatten(1).mean(1) - 1


@torch.no_grad()
def important_levels(
    denoiser: Denoiser,
    x0: Tensor,
    schedule: NoiseSchedule,
    seed: int = 0,
    cond: Cond | None = None,
    pieces: int = 28,
    largest_logsnr: float = 14.0,
    smallest_logsnr: float = -14.0,
) -> LevelProposal:
    """Levels in proportion to the standard deviation of what is averaged there, measured on examples x0 `[B, *S]`.

    With stratified draws that is the proposal of least variance (Neyman's allocation); importance sampling of levels is that of
    Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3.3. The coefficient of the control variate is the regression of what is
    averaged on it. Half of the mean is added to every piece, so that no draw weighs more than 3 times an even one. The ends are
    those of `vdm.bits_per_dim`; use other examples, or another seed, than there.
    """
    lowest, highest = log_snr_ends(schedule, largest_logsnr, smallest_logsnr)
    edges = torch.linspace(lowest, highest, pieces + 1, dtype=torch.float64)
    ids = torch.arange(len(x0), device=x0.device)
    spreads, controls = [], []
    for piece in range(pieces):
        u = rng.uniform((), (seed, 2, piece), ids)
        logsnr = edges[piece].to(u) + (edges[piece + 1] - edges[piece]).to(u) * u
        level = logsnr_level(logsnr)
        noise = rng.normal(x0.shape[1:], (seed, 3, piece), ids).to(x0)
        error = (denoiser(level.corrupt(x0, noise), level, cond or {}) - x0).double().square().flatten(1).mean(1)
        excess, plain = _excess(noise), logsnr.exp() * error
        control = ((excess * (plain - plain.mean())).mean() / excess.square().mean()).clamp(0, 1)
        controls.append(control.cpu())
        spreads.append(integrand(error, logsnr, noise, control).std().cpu())
    roots = torch.stack(spreads).clamp(min=TINY)
    roots = roots + roots.mean() / 2
    return LevelProposal(edges, roots / roots.sum(), torch.stack(controls))


def log_snr_ends(schedule: NoiseSchedule, largest: float = 14.0, smallest: float = -14.0) -> tuple[float, float]:
    """The lowest and the highest log-SNR of a schedule, limited to the given ones."""
    ends = schedule(torch.tensor([1.0, 0.0], dtype=torch.float64)).logsnr.detach().clamp(smallest, largest)
    return float(ends[0]), float(ends[1])


def mean_and_error(bits: Tensor) -> tuple[float, float]:
    """The mean over examples `[B]`, and its standard error, which covers the choice of examples, levels and noise."""
    values = bits.double()
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
