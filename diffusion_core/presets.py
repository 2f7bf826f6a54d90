"""The named methods, a line each. `sd` is the standard deviation of the data."""

from __future__ import annotations

from diffusion_core import level, objective, step, walk
from diffusion_core.objective import unit
from diffusion_core.recipe import Recipe
from diffusion_core.target import EPS, FLOW
from diffusion_core.target import edm as edm_target


def edm(sd: float = 0.5, mean: float = -1.2, std: float = 1.2, low: float = 0.002, high: float = 80.0) -> Recipe:
    """Karras et al. 2022 (arXiv 2206.00364): log-normal sigma, preconditioned target, Heun on rho = 7 levels."""
    target = edm_target(sd)
    return Recipe(
        target=target,
        density=objective.lognormal(mean, std),
        weight=unit(target),
        walk=lambda n: walk.karras(n, low, high),
        step=step.heun(),
        sd=sd,
    )


def rectified_flow(sd: float = 1.0) -> Recipe:
    """Liu et al. 2023 (arXiv 2209.03003): the straight path, uniform t, the velocity."""
    path = level.linear()
    return Recipe(
        target=FLOW,
        density=objective.uniform(path, 1e-4),
        weight=unit(FLOW),
        walk=lambda n: walk.uniform(path, n),
        step=step.heun(step.FLOW),
        sd=sd,
    )


def ddpm(sd: float = 1.0, total: int = 1000) -> Recipe:
    """Ho et al. 2020 (arXiv 2006.11239): the linear-beta chain, the noise, L_simple; all `total` ancestral steps or fewer."""
    path = level.betas(level.linear_betas(total))
    return Recipe(
        target=EPS,
        density=objective.discrete(path, total),
        weight=unit(EPS),
        walk=lambda n: walk.trailing(path, n, total),
        step=step.ddim(eta=1),
        sd=sd,
    )
