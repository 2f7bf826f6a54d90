"""Named methods of the literature as recipes. `sd` is the standard deviation of the data."""

from __future__ import annotations

import torch

from diffusion_core import loss_weights, losses, schedules
from diffusion_core.denoiser import angle
from diffusion_core.extras import corruptions
from diffusion_core.extras.learned_variance import LearnedVariance, hybrid_loss
from diffusion_core.extras.vdm import LearnedSchedule, VariationalLoss
from diffusion_core.losses import unit
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import solvers, timesteps
from diffusion_core.sampling.langevin import keep_x, langevin, predictor_corrector, signal_to_noise
from diffusion_core.schedules import NoiseSchedule
from diffusion_core.targets import EPS, FLOW, X0, V
from diffusion_core.targets import edm as edm_target


def ddpm(sd: float = 1.0, total: int = 1000) -> Recipe:
    """DDPM, Ho et al. 2020 (arXiv 2006.11239): linear betas, noise prediction, L_simple, ancestral sampling."""
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


def iddpm(sd: float = 1.0, total: int = 4000) -> Recipe:
    """Improved DDPM, Nichol & Dhariwal 2021 (arXiv 2102.09672): cosine betas, learned variance, L_hybrid.

    The network returns twice as many channels as its input has. Sample with `denoiser.posterior`. For the paper's importance
    sampling of levels add `importance=Importance()`. Sampling with few steps leaves out the noisiest levels of the chain, where
    the cosine schedule has almost no signal and predicting the noise tells nothing about x0.
    """
    schedule = schedules.betas(schedules.cosine_betas(total))
    return ddpm(sd).replace(
        density=losses.discrete(schedule, total),
        timesteps=lambda n: timesteps.leading(schedule, n, total),
        form=LearnedVariance,
        loss=hybrid_loss(schedule, total),
    )


def ncsn(
    sd: float = 1.0, sigma_min: float = 0.01, sigma_max: float = 20.0, levels: int = 20, langevin_steps: int = 20
) -> Recipe:
    """NCSN, Song & Ermon 2019 (arXiv 1907.05600): denoising score matching, annealed Langevin dynamics.

    The score is -eps / sigma; the network predicts eps, as in the authors' second paper (arXiv 2006.09011). Sampling makes
    `langevin_steps` steps at each of `levels` noise levels, whatever number of steps is requested.
    """
    noise_levels = timesteps.geometric(levels, sigma_min, sigma_max)
    return Recipe(
        target=EPS,
        density=losses.one_of(noise_levels),
        weight=unit(EPS),
        timesteps=lambda _: [*timesteps.repeat_levels(noise_levels, langevin_steps), timesteps.clean()],
        step=predictor_corrector(keep_x, langevin(0.2)),
        sd=sd,
    )


def score_sde(schedule: NoiseSchedule, sd: float = 1.0, low: float = 1e-3, high: float = 1.0) -> Recipe:
    """Score SDE, Song et al. 2021 (arXiv 2011.13456): uniform t, noise prediction, predictor-corrector sampling.

    Training draws t from 1e-5 to `high`; sampling ends at t = `low` (appendix C).
    For the schedules `schedules.vp()` and `schedules.sub_vp()`. The variance-exploding SDE is `score_ve`; the
    probability-flow ODE is solved by `sampling.ode.solve`.
    """
    return Recipe(
        target=EPS,
        density=losses.uniform(schedule, 1e-5, high),
        weight=unit(EPS),
        timesteps=lambda n: [*timesteps.repeat_levels(timesteps.uniform(schedule, n, high, low), 1), timesteps.clean()],
        step=predictor_corrector(solvers.ddim(eta=1), langevin(signal_to_noise())),
        sd=sd,
    )


def score_ve(sd: float = 1.0, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Recipe:
    """The variance-exploding SDE, Song et al. 2021 (arXiv 2011.13456): log sigma uniform."""
    return score_sde(schedules.ve(), sd).replace(
        density=losses.geometric(sigma_min, sigma_max),
        timesteps=lambda n: [
            *timesteps.repeat_levels(timesteps.geometric(n, sigma_min, sigma_max), 1),
            timesteps.clean(),
        ],
    )


def vdm(learned: LearnedSchedule, sd: float = 1.0) -> Recipe:
    """VDM, Kingma et al. 2021 (arXiv 2107.00630): learned schedule, variational bound, ancestral sampling."""
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
    """EDM, Karras et al. 2022 (arXiv 2206.00364): log-normal sigma, preconditioning, Heun on the rho = 7 timesteps."""
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
    """EDM2, Karras et al. 2024 (arXiv 2312.02696): EDM with learned uncertainty. Its weight averages are `ema.power`."""
    return edm(sd, p_mean, p_std).replace(loss=loss_weights.Uncertainty())


def rectified_flow(sd: float = 1.0) -> Recipe:
    """Rectified flow, Liu et al. 2023 (arXiv 2209.03003): linear schedule, uniform t, velocity prediction.

    For reflow replace the loss by `losses.paired_loss`.
    """
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
    """SD3, Esser et al. 2024 (arXiv 2403.03206): rectified flow with logit-normal t.

    `shift` > 1 trains and samples at noisier levels, for large pictures (section 5.3.2).
    """
    schedule = schedules.linear() if shift == 1 else schedules.shift(schedules.linear(), 1 / shift)
    return rectified_flow(sd).replace(
        density=losses.logitnormal(schedule, mean, std), timesteps=lambda n: timesteps.uniform(schedule, n)
    )


def simple_diffusion(sd: float = 1.0, size: float = 64, shift: float | None = None) -> Recipe:
    """Simple diffusion, Hoogeboom et al. 2023 (arXiv 2301.11093): cosine schedule shifted by 64 / size.

    The network predicts v; the loss is the squared error of the noise. `shift` replaces 64 / size.
    """
    # t of the largest log-SNR, which the paper clips before it shifts.
    low = float(schedules.trig().invert(torch.tensor(15.0, dtype=torch.float64)))
    schedule = schedules.shift(schedules.trig(), 64 / size if shift is None else shift)
    return Recipe(
        target=V,
        density=losses.uniform(schedule, low, 1 - low),
        weight=unit(EPS),
        timesteps=lambda n: [*timesteps.uniform(schedule, n, 1 - low, low), timesteps.clean()],
        step=solvers.ddim(eta=1),
        sd=sd,
    )


def cold(degrade: corruptions.Degrade, sd: float = 1.0) -> Recipe:
    """Cold diffusion, Bansal et al. 2022 (arXiv 2208.09392): a degradation in place of noise, L1 loss, prediction of x0.

    Sampling starts from fully degraded examples or from `corruptions.GaussianStart`.
    """
    schedule = schedules.trig()
    return Recipe(
        target=X0,
        density=losses.uniform(schedule),
        weight=unit(X0),
        timesteps=lambda n: timesteps.uniform(schedule, n),
        step=corruptions.cold(degrade),
        sd=sd,
        c_noise=corruptions.process_time,
        form=corruptions.Direct,
        draw=losses.iid,
        loss=corruptions.cold_loss(degrade),
        degrade=degrade,
    )


def trigflow(sd: float = 0.5, p_mean: float = -1.0, p_std: float = 1.4) -> Recipe:
    """TrigFlow, Lu & Song 2024 (arXiv 2410.11081): EDM with the angle as noise embedding and timesteps even in the angle.

    The angle is atan(sigma / sd). log sigma is normal in training.
    """
    return edm(sd, p_mean, p_std).replace(
        c_noise=angle(sd), timesteps=lambda n: timesteps.uniform(schedules.trig(sd), n), step=solvers.ddim()
    )
