"""The named methods, a line each where the defaults allow. `sd` is the standard deviation of the data."""

from __future__ import annotations

from diffusion_core import loss_weights, losses, schedules
from diffusion_core.denoiser import angle
from diffusion_core.extras.learned_variance import LearnedVariance, hybrid_loss
from diffusion_core.extras.vdm import LearnedSchedule, VariationalLoss
from diffusion_core.losses import unit
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import solvers, timesteps
from diffusion_core.sampling.langevin import keep_x, langevin, predictor_corrector, signal_to_noise
from diffusion_core.schedules import NoiseSchedule
from diffusion_core.targets import EPS, FLOW, V
from diffusion_core.targets import edm as edm_target


def ddpm(sd: float = 1.0, total: int = 1000) -> Recipe:
    """Ho et al. 2020 (arXiv 2006.11239): linear betas, the noise, L_simple; all `total` ancestral steps or fewer."""
    schedule = schedules.betas(schedules.linear_betas(total))
    return Recipe(
        target=EPS,
        density=losses.discrete(schedule, total),
        weight=unit(EPS),
        timesteps=lambda n: timesteps.trailing(schedule, n, total),
        step=solvers.ddim(eta=1),
        sd=sd,
        draw=losses.iid,
    )


def iddpm(sd: float = 1.0, total: int = 1000) -> Recipe:
    """Nichol & Dhariwal 2021 (arXiv 2102.09672): cosine betas, learned variance, L_hybrid. The net has twice the channels.

    Sample with `denoiser.posterior`; add `importance=Importance()` for their sampling of steps. Short walks leave out the last
    steps of the chain, where the cosine schedule has next to no signal and the noise tells nothing about x0.
    """
    schedule = schedules.betas(schedules.cosine_betas(total))
    return ddpm(sd, total).replace(
        density=losses.discrete(schedule, total),
        timesteps=lambda n: timesteps.leading(schedule, n, total),
        form=LearnedVariance,
        loss=hybrid_loss(schedule, total),
    )


def ncsn(
    sd: float = 1.0, sigma_min: float = 0.01, sigma_max: float = 20.0, levels: int = 20, langevin_steps: int = 20
) -> Recipe:
    """Song & Ermon 2019 (arXiv 1907.05600): denoising score matching weighted by sigma^2, annealed Langevin dynamics.

    The score is -eps / sigma and the net predicts eps, as in their second version (arXiv 2006.09011). The walk has `levels`
    noise levels whatever the number of steps asked for.
    """
    ladder = timesteps.geometric(levels, sigma_min, sigma_max)
    return Recipe(
        target=EPS,
        density=losses.one_of(ladder),
        weight=unit(EPS),
        timesteps=lambda _: [*timesteps.repeat_levels(ladder, langevin_steps), timesteps.clean()],
        step=predictor_corrector(keep_x, langevin(0.2)),
        sd=sd,
    )


def score_sde(schedule: NoiseSchedule, sd: float = 1.0, low: float = 1e-3, high: float = 1.0) -> Recipe:
    """Song et al. 2021 (arXiv 2011.13456) on a schedule: t uniform, the noise, predictor-corrector sampling.

    Paths `level.vp()`, `level.sub_vp()`; the variance-exploding SDE is `score_ve`, the probability-flow ODE `ode.solve`.
    """
    return Recipe(
        target=EPS,
        density=losses.uniform(schedule, low, high),
        weight=unit(EPS),
        timesteps=lambda n: [*timesteps.repeat_levels(timesteps.uniform(schedule, n, high, low), 1), timesteps.clean()],
        step=predictor_corrector(solvers.ddim(eta=1), langevin(signal_to_noise())),
        sd=sd,
    )


def score_ve(sd: float = 1.0, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Recipe:
    """The variance-exploding SDE: log sigma uniform. Song et al. 2021 (arXiv 2011.13456)."""
    return score_sde(schedules.ve(), sd).replace(
        density=losses.geometric(sigma_min, sigma_max),
        timesteps=lambda n: [
            *timesteps.repeat_levels(timesteps.geometric(n, sigma_min, sigma_max), 1),
            timesteps.clean(),
        ],
    )


def vdm(learned: LearnedSchedule, sd: float = 1.0) -> Recipe:
    """Kingma et al. 2021 (arXiv 2107.00630): a learned schedule, the variational bound, ancestral sampling."""
    return Recipe(
        target=EPS,
        density=learned,
        weight=loss_weights.elbo(learned.schedule),
        timesteps=lambda n: [*timesteps.detached(timesteps.uniform(learned.schedule, n)), timesteps.clean()],
        step=solvers.ddim(eta=1),
        sd=sd,
        loss=VariationalLoss(learned),
    )


def edm(
    sd: float = 0.5, p_mean: float = -1.2, p_std: float = 1.2, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Recipe:
    """Karras et al. 2022 (arXiv 2206.00364): log-normal sigma, preconditioned target, Heun on rho = 7 levels."""
    target = edm_target(sd)
    return Recipe(
        target=target,
        density=losses.lognormal(p_mean, p_std),
        weight=unit(target),
        timesteps=lambda n: timesteps.karras(n, sigma_min, sigma_max),
        step=solvers.heun(),
        sd=sd,
    )


def edm2(sd: float = 0.5, p_mean: float = -0.4, p_std: float = 1.0) -> Recipe:
    """Karras et al. 2024 (arXiv 2312.02696), the training: learned uncertainty. Use `average.power` for its averages."""
    return edm(sd, p_mean, p_std).replace(loss=loss_weights.Uncertainty())


def rectified_flow(sd: float = 1.0) -> Recipe:
    """Liu et al. 2023 (arXiv 2209.03003): the straight schedule, uniform t, the velocity. Reflow: `loss=losses.paired_loss`."""
    schedule = schedules.linear()
    return Recipe(
        target=FLOW,
        density=losses.uniform(schedule, 1e-4),
        weight=unit(FLOW),
        timesteps=lambda n: timesteps.uniform(schedule, n),
        step=solvers.heun(solvers.FLOW_ODE),
        sd=sd,
    )


def sd3(sd: float = 1.0, mean: float = 0.0, std: float = 1.0, shift: float = 1.0) -> Recipe:
    """Esser et al. 2024 (arXiv 2403.03206): rectified flow with logit-normal t and sampling times shifted to more noise."""
    return rectified_flow(sd).replace(
        density=losses.logitnormal(schedules.linear(), mean, std),
        timesteps=lambda n: timesteps.uniform(schedules.shift(schedules.linear(), 1 / shift), n),
    )


def simple_diffusion(sd: float = 1.0, size: int = 64) -> Recipe:
    """Hoogeboom et al. 2023 (arXiv 2301.11093): the cosine path shifted by 64 / size, v, uniform t."""
    schedule = schedules.shift(schedules.trig(), 64 / size)
    return Recipe(
        target=V,
        density=losses.uniform(schedule, 1e-3, 1 - 1e-3),
        weight=unit(V),
        timesteps=lambda n: [*timesteps.uniform(schedule, n, 1 - 1e-3, 1e-3), timesteps.clean()],
        step=solvers.ddim(eta=1),
        sd=sd,
    )


def trigflow(sd: float = 0.5, p_mean: float = -1.0, p_std: float = 1.4) -> Recipe:
    """Lu & Song 2024 (arXiv 2410.11081): EDM in angle coordinates; the net is told the angle, and steps are even in it."""
    return edm(sd, p_mean, p_std).replace(
        c_noise=angle, timesteps=lambda n: timesteps.uniform(schedules.trig(), n), step=solvers.ddim()
    )
