"""Averages of the weights over training, on a clock of images seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from diffusion_core.training import parallel

# (images seen after the step, images in the step) -> share of the old average that is kept
Decay = Callable[[int, int], float]


def halflife(images: float, warmup: float = 0.05) -> Decay:
    """Exponential averaging with a half-life of `images` images.

    The half-life is at most `warmup` times the images seen, so that the initial weights are forgotten. 0 images: no averaging.
    Karras et al. 2022 (arXiv 2206.00364), appendix F.
    """

    def decay(nimg: int, batch: int) -> float:
        half = min(images, warmup * nimg)
        return 0.5 ** (batch / half) if half > 0 else 0.0

    return decay


def power(sigma_rel: float) -> Decay:
    """Averaging in which the weights at time t have share t^gamma, so that the average's width grows with the run.

    sigma_rel is the profile's standard deviation as a share of the run's length. Karras et al. 2024 (arXiv 2312.02696), eq. 2.
    """
    gamma = power_gamma(sigma_rel)
    return lambda nimg, batch: (1 - batch / nimg) ** (gamma + 1)


def power_gamma(sigma_rel: float) -> float:
    """The exponent whose profile t^gamma on (0, 1) has standard deviation sigma_rel, in (0, 0.2887). Appendix C.1.

    Raises ValueError outside: a wider profile would weigh early weights more than late ones.
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise ValueError(f"sigma_rel must lie between 0 and {12**-0.5:.4f}, got {sigma_rel}")
    low, high = 0.0, 1.0
    while _power_std(high) > sigma_rel:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _power_std(middle) > sigma_rel else (low, middle)
    return (low + high) / 2


def _power_std(gamma: float) -> float:
    return float(((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5)


class Average:
    """A running average of named parameters, in the parameters' type.

    Under DDP every rank keeps the same average of the same weights; with sharded weights each rank keeps that of its shard.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: Decay) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, Tensor], nimg: int, batch: int) -> None:
        """Add the parameters after a step of `batch` images that ended at `nimg` images."""
        keep = self.decay(nimg, batch)
        current = [parallel.local_shard(parameters[name].detach()) for name in self.weights]
        torch._foreach_lerp_([parallel.local_shard(value) for value in self.weights.values()], current, 1 - keep)


def post_hoc_shares(snapshots: Sequence[tuple[int, float]], at: int, sigma_rel: float) -> Tensor:
    """The shares with which `mix_averages` turns stored `power` averages into another one, `[len(snapshots)]` float64.

    Each snapshot is (images seen, its sigma_rel); the mixture is the least-squares fit of the average with `sigma_rel` at
    image count `at`. Karras et al. 2024 (arXiv 2312.02696), appendix C.2: profiles t^gamma have closed inner products.
    """
    times = torch.tensor([float(nimg) for nimg, _ in snapshots], dtype=torch.float64)
    gammas = torch.tensor([power_gamma(width) for _, width in snapshots], dtype=torch.float64)
    goal_time = torch.tensor([float(at)], dtype=torch.float64)
    goal_gamma = torch.tensor([power_gamma(sigma_rel)], dtype=torch.float64)
    gram = _inner(times[:, None], gammas[:, None], times[None], gammas[None])
    wanted = _inner(times[:, None], gammas[:, None], goal_time, goal_gamma)
    shares: Tensor = torch.linalg.lstsq(gram, wanted, driver="gelsd").solution[:, 0]
    return shares


def post_hoc_error(snapshots: Sequence[tuple[int, float]], at: int, sigma_rel: float, shares: Tensor) -> float:
    """How far the mixture's profile is from the wanted one: the L2 norm of the difference, as a share of the wanted one's."""
    times = torch.tensor([float(nimg) for nimg, _ in snapshots] + [float(at)], dtype=torch.float64)
    gammas = torch.tensor(
        [power_gamma(width) for _, width in snapshots] + [power_gamma(sigma_rel)], dtype=torch.float64
    )
    gram = _inner(times[:, None], gammas[:, None], times[None], gammas[None])
    signed = torch.cat([shares, -shares.new_ones(1)])
    return float(((signed @ gram @ signed) / gram[-1, -1]).clamp(min=0).sqrt())


def _inner(time1: Tensor, gamma1: Tensor, time2: Tensor, gamma2: Tensor) -> Tensor:
    """Inner product of the profiles (gamma + 1) t^gamma / T^(gamma + 1) on (0, T)."""
    early = torch.minimum(time1, time2)
    logs = gamma1 * torch.log(early / time1) + gamma2 * torch.log(early / time2) + torch.log(early / (time1 * time2))
    return (gamma1 + 1) * (gamma2 + 1) / (gamma1 + gamma2 + 1) * torch.exp(logs)


def mix_averages(averages: Iterable[Mapping[str, Tensor]], shares: Tensor) -> dict[str, Tensor]:
    """The sum of shares times averages, summed in float64, in the averages' type. One average is in memory at a time."""
    sums: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for share, average in zip(shares.tolist(), averages, strict=True):
        for name, value in average.items():
            part = share * value.double()
            sums[name] = sums[name] + part if name in sums else part
            kinds[name] = value.dtype
    return {name: value.to(kinds[name]) for name, value in sums.items()}
