"""The methods of training that can be chosen by name, such as in `params.yaml`: recipes and what can be changed in them.

To offer another method, add it to one of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffusion_core.choice_table import AUTO, Choice, Parameter, Value, check_name, check_parameters, core, numbers

if TYPE_CHECKING:
    from diffusion_core.losses import Penalty
    from diffusion_core.recipe import Recipe
    from diffusion_core.rng import Noise
    from diffusion_core.schedules import NoiseSchedule
    from diffusion_core.targets import Target


@dataclass(frozen=True, kw_only=True)
class RecipeChoice(Choice):
    """A recipe of `presets`. `make`: (standard deviation of the data, side of a picture, parameters) -> recipe.

    `targets`: what the network may predict; empty if the recipe determines it. The first is the recipe's own.
    `schedule`: (side, parameters) -> the noise schedule on which its time is uniform, which the weight `elbo` needs.
    `own_weight`: its loss determines the weights of the noise levels. `own_loss`: it trains something besides the denoiser by
    a loss of its own, which is derived for squared errors and normal noise. `learned_levels`: it learns its noise schedule.
    `samplers`: the only ones that it can be sampled with; empty if all. `cold`: it degrades examples instead of adding noise.
    `tokens`: it models the codes of a codec with a codebook; `make` gets their number too, as `codes`.
    `threshold`: what limits the estimate of x0 in sampling where nothing else is chosen, see `choices.THRESHOLDS`.
    `mixed`: it has several networks, and losses of its own. `own_steps`: it is sampled in its own steps, whatever number is
    asked for. `finished`: its samples are decoded after the last step. `enlarges`: though mixed, it can be the upscaler's.
    `pictures_only`: it cannot be trained on poses. `check_size`: (side, parameters), raises ValueError if they do not fit.
    """

    make: Callable[..., Recipe]
    targets: tuple[str, ...] = ()
    schedule: Callable[..., NoiseSchedule] | None = None
    own_weight: bool = False
    own_loss: bool = False
    learned_levels: bool = False
    samplers: tuple[str, ...] = ()
    cold: bool = False
    tokens: bool = False
    threshold: str = "none"
    mixed: bool = False
    own_steps: bool = False
    finished: bool = False
    enlarges: bool = False
    pictures_only: bool = False
    check_size: Callable[..., None] | None = None


ALL_TARGETS = ("noise", "x0", "v", "velocity")
# Where sampling starts at a = 0, the noise does not determine x0.
FLOW_TARGETS = ("velocity", "x0", "v")

# For networks that were trained at a few levels, between which Langevin dynamics moves by adding noise.
STOCHASTIC = (
    "ddpm", "analytic_dpm", "restart", "dpmpp_2m_sde", "dpmpp_3m_sde", "predictor_corrector", "langevin",
)  # fmt: skip

# For recipes that predict noise and start where there is hardly anything else, so that small errors of the prediction become
# large errors of x0. The code of DDPM and improved DDPM clips the estimate to the range of pixels.
RANGE = "range"

_BETAS = {
    "beta_min": Parameter("beta(t) at t = 0", 0.1, 0.0, 5.0),
    "beta_max": Parameter("beta(t) at t = 1", 20.0, 5.0, 100.0),
}


def _chain(total: int) -> dict[str, Parameter]:
    return {"total": Parameter("levels of the discrete chain", total, 20, 10000, integer=True)}


def _sigmas(low: float, high: float) -> dict[str, Parameter]:
    return {
        "sigma_min": Parameter("smallest noise level", low, 1e-4, 0.5),
        "sigma_max": Parameter("largest noise level", high, 1.0, 1000.0),
    }


def _lognormal(mean: float, std: float) -> dict[str, Parameter]:
    """In the units in which the data have standard deviation `sd`."""
    return {
        "p_mean": Parameter("mean of log sigma in training", mean, -10.0, 10.0, measured=True),
        "p_std": Parameter("standard deviation of log sigma in training", std, 0.01, 10.0, measured=True),
    }


def _linear_chain(size: int, total: int = 1000) -> NoiseSchedule:
    schedule: NoiseSchedule = core("schedules").betas(core("schedules").linear_betas(total))
    return schedule


def _vp(size: int, **p: float) -> NoiseSchedule:
    schedule: NoiseSchedule = core("schedules").vp(**p)
    return schedule


def _sub_vp(size: int, **p: float) -> NoiseSchedule:
    schedule: NoiseSchedule = core("schedules").sub_vp(**p)
    return schedule


def _shifted(size: int, shift: float | None = None) -> NoiseSchedule:
    schedules = core("schedules")
    schedule: NoiseSchedule = schedules.shift(schedules.trig(), 64 / size if shift is None else shift)
    return schedule


def _cold_blur(sd: float, size: int, widest: float | None = None) -> Recipe:
    degrade = core("extras.corruptions").blur_degradation(size / 4 if widest is None else widest)
    recipe: Recipe = core("presets").cold(degrade, sd)
    return recipe


def _cold_mask(sd: float, size: int, share: float = 0.5) -> Recipe:
    recipe: Recipe = core("presets").cold(core("extras.corruptions").rows_degradation(share), sd)
    return recipe


def _cold_downsample(sd: float, size: int, factor: int = 4) -> Recipe:
    recipe: Recipe = core("presets").cold(core("extras.corruptions").downsample_degradation(factor), sd)
    return recipe


def _divides(size: int, factor: int = 4) -> None:
    if size % factor:
        raise ValueError(
            f"factor of recipe cold_downsample must divide the side that the network sees ({size}), got {factor}"
        )


SIGMA = Parameter("standard deviation of noise in what it makes: where a truncated start begins", 0.0, 0.0, 1000.0)
GAMMA = Parameter("gradient penalty of the discriminator", 0.1, 0.0, 1000.0)
CONTENT = Parameter("weight of the error of 2 x 2 averages in the upscaler", 1.0, 0.0, 1000.0)
# Deterministic solvers, and those that add noise but need no measured or learned variance.
SOLVERS = (
    "unipc", "ddpm", "ddim", "euler", "heun", "restart", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "lms",
)  # fmt: skip


def _vdm(sd: float, size: int, **p: float) -> Recipe:
    recipe: Recipe = core("presets").vdm(core("extras.vdm").LearnedSchedule(**p), sd)
    return recipe


RECIPES: Mapping[str, RecipeChoice] = {
    "ddpm": RecipeChoice(
        title="DDPM",
        code="presets.ddpm()",
        paper="arXiv 2006.11239",
        make=lambda sd, size, **p: core("presets").ddpm(sd, **p),
        parameters=_chain(1000),
        threshold=RANGE,
        targets=ALL_TARGETS,
        schedule=_linear_chain,
    ),
    "iddpm": RecipeChoice(
        title="Improved DDPM (cosine, learned variance, L_hybrid)",
        code="presets.iddpm()",
        paper="arXiv 2102.09672",
        make=lambda sd, size, **p: core("presets").iddpm(sd, **p),
        parameters=_chain(4000),
        threshold=RANGE,
        targets=ALL_TARGETS,
        own_loss=True,
    ),
    "ncsn": RecipeChoice(
        title="NCSN (annealed Langevin)",
        code="presets.ncsn()",
        paper="arXiv 1907.05600",
        make=lambda sd, size, **p: core("presets").ncsn(sd, **p),
        parameters={
            "sigma_min": Parameter("smallest noise level", 0.01, 1e-4, 0.5),
            "sigma_max": Parameter("largest noise level", 20.0, 1.0, 1000.0, measured=True),
            "levels": Parameter("noise levels", 20, 2, 10000, integer=True, measured=True),
        },
        targets=ALL_TARGETS,
        samplers=STOCHASTIC,
    ),
    "score_vp": RecipeChoice(
        title="Score SDE, VP",
        code="presets.score_sde(schedules.vp())",
        paper="arXiv 2011.13456",
        make=lambda sd, size, **p: core("presets").score_sde(_vp(size, **p), sd),
        parameters=_BETAS,
        threshold=RANGE,
        targets=ALL_TARGETS,
        schedule=_vp,
    ),
    "score_subvp": RecipeChoice(
        title="Score SDE, sub-VP",
        code="presets.score_sde(schedules.sub_vp())",
        paper="arXiv 2011.13456",
        make=lambda sd, size, **p: core("presets").score_sde(_sub_vp(size, **p), sd),
        parameters=_BETAS,
        threshold=RANGE,
        targets=ALL_TARGETS,
        schedule=_sub_vp,
    ),
    "score_ve": RecipeChoice(
        title="Score SDE, VE",
        code="presets.score_ve()",
        paper="arXiv 2011.13456",
        make=lambda sd, size, **p: core("presets").score_ve(sd, **p),
        parameters=_sigmas(0.01, 50.0),
        threshold=RANGE,
        targets=ALL_TARGETS,
    ),
    "vdm": RecipeChoice(
        title="VDM (learned schedule)",
        code="presets.vdm(extras.vdm.LearnedSchedule())",
        paper="arXiv 2107.00630",
        make=_vdm,
        parameters={
            "highest": Parameter("log-SNR of the least noisy level", 13.3, 5.0, 20.0),
            "lowest": Parameter("log-SNR of the noisiest level", -5.0, -20.0, 0.0),
        },
        threshold=RANGE,
        targets=ALL_TARGETS,
        own_weight=True,
        own_loss=True,
        learned_levels=True,
    ),
    "edm": RecipeChoice(
        title="EDM",
        code="presets.edm()",
        paper="arXiv 2206.00364",
        make=lambda sd, size, **p: core("presets").edm(sd, **p),
        parameters=_lognormal(-1.2, 1.2),
    ),
    "edm2": RecipeChoice(
        title="EDM2 (uncertainty weight)",
        code="presets.edm2()",
        paper="arXiv 2312.02696",
        make=lambda sd, size, **p: core("presets").edm2(sd, **p),
        parameters=_lognormal(-0.4, 1.0),
        own_weight=True,
    ),
    "rectified_flow": RecipeChoice(
        title="Rectified flow, flow matching",
        code="presets.rectified_flow()",
        paper="arXiv 2209.03003",
        make=lambda sd, size: core("presets").rectified_flow(sd),
        targets=FLOW_TARGETS,
        schedule=lambda size: core("schedules").linear(),
    ),
    "sd3": RecipeChoice(
        title="SD3-style logit-normal flow",
        code="presets.sd3()",
        paper="arXiv 2403.03206",
        make=lambda sd, size, **p: core("presets").sd3(sd, **p),
        parameters={
            "mean": Parameter("mean of logit t in training", 0.0, -5.0, 5.0),
            "std": Parameter("standard deviation of logit t in training", 1.0, 0.05, 5.0),
            "shift": Parameter("above 1, noisier levels in training and sampling", 1.0, 0.1, 20.0),
        },
        targets=FLOW_TARGETS,
    ),
    "simple_diffusion": RecipeChoice(
        title="Simple diffusion (shifted schedule)",
        code="presets.simple_diffusion()",
        paper="arXiv 2301.11093",
        make=lambda sd, size, **p: core("presets").simple_diffusion(sd, size, **p),
        parameters={
            "shift": Parameter("factor of the signal-to-noise amplitude; by default 64 / side", None, 0.05, 20.0)
        },
        targets=("v", "noise", "x0", "velocity"),
        schedule=_shifted,
    ),
    "trigflow": RecipeChoice(
        title="TrigFlow",
        code="presets.trigflow()",
        paper="arXiv 2410.11081",
        make=lambda sd, size, **p: core("presets").trigflow(sd, **p),
        parameters=_lognormal(-1.0, 1.4),
    ),
    "cold_blur": RecipeChoice(
        title="Cold diffusion (blur)",
        code="presets.cold(extras.corruptions.blur_degradation(16))",
        paper="arXiv 2208.09392",
        make=_cold_blur,
        parameters={
            "widest": Parameter("standard deviation of the blur at t = 1; by default side / 4", None, 0.5, 512.0)
        },
        samplers=("cold",),
        cold=True,
        pictures_only=True,
    ),
    "cold_mask": RecipeChoice(
        title="Cold diffusion (mask)",
        code="presets.cold(extras.corruptions.rows_degradation(1))",
        paper="arXiv 2208.09392",
        make=_cold_mask,
        parameters={"share": Parameter("of the rows or joints, the last ones, that fade to 0", 0.5, 0.05, 0.95)},
        samplers=("cold",),
        cold=True,
    ),
    "cold_downsample": RecipeChoice(
        title="Cold diffusion (downsample)",
        code="presets.cold(extras.corruptions.downsample_degradation(4))",
        paper="arXiv 2208.09392",
        make=_cold_downsample,
        parameters={"factor": Parameter("side of the squares that are averaged", 4, 2, 64, integer=True)},
        samplers=("cold",),
        cold=True,
        pictures_only=True,
        check_size=_divides,
    ),
    "masked": RecipeChoice(
        title="Masked tokens (MaskGIT, Muse)",
        code="extras.tokens.masked(512)",
        paper="arXiv 2202.04200",
        make=lambda sd, size, codes, **p: core("extras.tokens").masked(codes, **p),
        parameters={
            "temperature": Parameter("1: tokens are decoded in random order; 0: the likeliest first", 0.5, 0.0, 1.0)
        },
        samplers=("unmask",),
        tokens=True,
        pictures_only=True,
    ),
    "absorbing": RecipeChoice(
        title="Absorbing diffusion of tokens (D3PM, MDLM)",
        code="extras.tokens.absorbing(512)",
        paper="arXiv 2406.07524",
        make=lambda sd, size, codes: core("extras.tokens").absorbing(codes),
        samplers=("unmask",),
        tokens=True,
        pictures_only=True,
    ),
    "uniform": RecipeChoice(
        title="Uniform diffusion of tokens (D3PM)",
        code="extras.tokens.uniform(512)",
        paper="arXiv 2107.03006",
        make=lambda sd, size, codes, **p: core("extras.tokens").uniform(codes, **p),
        parameters={"chain": Parameter("steps of the chain whose bound is trained", 1000, 20, 100000, integer=True)},
        samplers=("unmask",),
        tokens=True,
        pictures_only=True,
    ),
    "vae": RecipeChoice(
        title="Variational autoencoder",
        code="extras.generators.vae()",
        paper="arXiv 1312.6114",
        make=lambda sd, size, **p: core("extras.generators").vae(sd, **p),
        parameters={"sigma": SIGMA},
        samplers=("own",),
        mixed=True,
        own_steps=True,
    ),
    "gan": RecipeChoice(
        title="Conditional GAN (relativistic, with gradient penalties)",
        code="extras.generators.gan()",
        paper="arXiv 2501.05441",
        make=lambda sd, size, **p: core("extras.generators").gan(sd, **p),
        parameters={"sigma": SIGMA, "gamma": GAMMA, "content": CONTENT},
        enlarges=True,
        samplers=("own",),
        mixed=True,
        own_steps=True,
    ),
    "diffuse_vae": RecipeChoice(
        title="DiffuseVAE (EDM given a VAE's reconstruction)",
        code="extras.diffuse_vae.diffuse_vae()",
        paper="arXiv 2201.00308",
        make=lambda sd, size, **p: core("extras.diffuse_vae").diffuse_vae(sd, **p),
        parameters=_lognormal(-1.2, 1.2),
        samplers=SOLVERS,
        mixed=True,
    ),
    "ddgan": RecipeChoice(
        title="Denoising diffusion GAN",
        code="extras.denoising_gan.ddgan()",
        paper="arXiv 2112.07804",
        make=lambda sd, size, **p: core("extras.denoising_gan").ddgan(sd, **p),
        parameters={"steps": Parameter("of the chain", 4, 1, 64, integer=True), "gamma": GAMMA},
        samplers=("own",),
        mixed=True,
        own_steps=True,
    ),
    "lsgm": RecipeChoice(
        title="LSGM (VAE and diffusion prior trained together)",
        code="extras.lsgm.lsgm()",
        paper="arXiv 2106.05931",
        make=lambda sd, size: core("extras.lsgm").lsgm(sd),
        samplers=SOLVERS,
        mixed=True,
        finished=True,
    ),
    "diffflow": RecipeChoice(
        title="DiffFlow (learned forward process)",
        code="extras.diffflow.diffflow()",
        paper="arXiv 2110.07579",
        make=lambda sd, size, **p: core("extras.diffflow").diffflow(sd, **p),
        parameters={"steps": Parameter("of both processes", 24, 3, 256, integer=True)},
        samplers=("own",),
        mixed=True,
        own_steps=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class TargetChoice(Choice):
    """What the network predicts."""

    make: Callable[[], Target]


TARGETS: Mapping[str, TargetChoice] = {
    "noise": TargetChoice(
        title="Noise prediction", code="targets.EPS", paper="arXiv 2006.11239", make=lambda: core("targets").EPS
    ),
    "x0": TargetChoice(
        title="Prediction of the clean example", code="targets.X0", paper="arXiv 2202.00512", make=lambda: core("targets").X0
    ),
    "v": TargetChoice(title="v-prediction", code="targets.V", paper="arXiv 2202.00512", make=lambda: core("targets").V),
    "velocity": TargetChoice(
        title="Velocity of the straight path", code="targets.FLOW", paper="arXiv 2209.03003",
        make=lambda: core("targets").FLOW,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WeightChoice(Choice):
    """A weight of the noise levels. `apply`: (recipe, the schedule on which its time is uniform) -> recipe with this weight."""

    apply: Callable[[Recipe, NoiseSchedule | None], Recipe]
    needs_schedule: bool = False
    learned: bool = False


WEIGHTS: Mapping[str, WeightChoice] = {
    "unit": WeightChoice(
        title="Unit (squared error of the prediction)", code="losses.unit", paper="arXiv 2303.00848",
        apply=lambda recipe, _: recipe.replace(weight=core("losses").unit(recipe.target)),
    ),
    "min_snr": WeightChoice(
        title="Min-SNR", code="loss_weights.min_snr", paper="arXiv 2303.09556",
        apply=lambda recipe, _: recipe.replace(weight=core("loss_weights").min_snr()),
    ),
    "soft_min_snr": WeightChoice(
        title="Soft-min-SNR", code="loss_weights.soft_min_snr", paper="arXiv 2401.11605",
        apply=lambda recipe, _: recipe.replace(weight=core("loss_weights").soft_min_snr(recipe.sd)),
    ),
    "p2": WeightChoice(
        title="P2", code="loss_weights.p2", paper="arXiv 2204.00227",
        apply=lambda recipe, _: recipe.replace(weight=core("loss_weights").p2()),
    ),
    "debiased": WeightChoice(
        title="Debiased", code="loss_weights.debiased", paper="arXiv 2310.08442",
        apply=lambda recipe, _: recipe.replace(weight=core("loss_weights").debiased()),
    ),
    "elbo": WeightChoice(
        title="ELBO", code="loss_weights.elbo", paper="arXiv 2107.00630", needs_schedule=True,
        apply=lambda recipe, schedule: recipe.replace(weight=core("loss_weights").elbo(schedule)),
    ),
    "uncertainty": WeightChoice(
        title="Learned uncertainty", code="loss_weights.Uncertainty", paper="arXiv 2312.02696", learned=True,
        apply=lambda recipe, _: recipe.replace(loss=core("loss_weights").Uncertainty(inner=recipe.loss)),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LevelsChoice(Choice):
    """How the noise levels of a batch are drawn. `apply`: recipe -> the recipe that draws them in this way."""

    apply: Callable[[Recipe], Recipe]
    changes_density: bool = False


LEVELS: Mapping[str, LevelsChoice] = {
    "independent": LevelsChoice(
        title="Independent draws", code="losses.iid", paper="arXiv 2006.11239",
        apply=lambda recipe: recipe.replace(draw=core("losses").iid),
    ),
    "stratified": LevelsChoice(
        title="Stratified (low-discrepancy) draws", code="losses.stratified", paper="arXiv 2107.00630",
        apply=lambda recipe: recipe.replace(draw=core("losses").stratified),
    ),
    "importance": LevelsChoice(
        title="Importance sampling by second moment", code="importance_sampling.Importance", paper="arXiv 2102.09672",
        changes_density=True,
        apply=lambda recipe: recipe.replace(importance=core("importance_sampling").Importance()),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NoiseChoice(Choice):
    """The distribution of the noise, with mean 0 and variance 1."""

    make: Callable[[], Noise]


GAMMA_SHAPE = 9  # skewness 2 / 3

NOISES: Mapping[str, NoiseChoice] = {
    "normal": NoiseChoice(
        title="Normal noise", code="rng.normal", paper="arXiv 2006.11239", make=lambda: core("rng").normal
    ),
    "gamma": NoiseChoice(
        title="Gamma-distributed noise", code="rng.gamma", paper="arXiv 2106.07582",
        make=lambda: core("rng").gamma(GAMMA_SHAPE),
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LossChoice(Choice):
    """What an error of the prediction costs."""

    make: Callable[[], Callable[..., Any]]


def _penalised(penalty: Penalty) -> Callable[..., Any]:
    loss: Callable[..., Any] = core("losses").Penalised(penalty)
    return loss


LOSSES: Mapping[str, LossChoice] = {
    "l2": LossChoice(title="Squared error", code="losses.loss", paper="arXiv 2006.11239", make=lambda: core("losses").loss),
    "l1": LossChoice(
        title="Absolute error", code="losses.absolute", paper="arXiv 2111.05826",
        make=lambda: _penalised(core("losses").absolute),
    ),
    "huber": LossChoice(
        title="Pseudo-Huber error", code="losses.pseudo_huber", paper="arXiv 2310.14189",
        make=lambda: _penalised(core("losses").pseudo_huber),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    """What is chosen of a training; None stands for the recipe's own. `parameters`: of the recipe, None for its defaults."""

    recipe: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    target: str | None = None
    weight: str | None = None
    levels: str | None = None
    noise: str = "normal"
    loss: str | None = None

    def check(self) -> None:
        """Raise ValueError, with a clause that says why, if these choices do not go together."""
        for table, kind, name in (
            (RECIPES, "recipe", self.recipe),
            (TARGETS, "target", self.target),
            (WEIGHTS, "weight", self.weight),
            (LEVELS, "way to draw levels", self.levels),
            (NOISES, "noise", self.noise),
            (LOSSES, "loss", self.loss),
        ):
            if name is not None:
                check_name(table, kind, name)
        choice = RECIPES[self.recipe]
        check_parameters(choice.parameters, f"recipe {self.recipe}", self.parameters)
        if self.target is not None and self.target not in choice.targets:
            allowed = f" or one of {', '.join(choice.targets)}" if choice.targets else ""
            why = "" if choice.targets else ", which determines what the network predicts"
            raise ValueError(f"target must be null{allowed} for recipe {self.recipe}{why}")
        self._check_loss(choice)
        if self.noise != "normal" and (choice.cold or choice.tokens):
            raise ValueError(f"noise must be normal for recipe {self.recipe}, which adds none")
        if self.noise != "normal" and choice.own_loss:
            raise ValueError(f"noise {self.noise} does not go with recipe {self.recipe}, whose loss needs normal noise")
        if self.noise != "normal" and choice.mixed:
            raise ValueError(f"noise must be normal for recipe {self.recipe}")
        if self.levels is not None and LEVELS[self.levels].changes_density and (choice.tokens or choice.mixed):
            raise ValueError(
                f"levels {self.levels} does not go with recipe {self.recipe}, whose loss is no squared error"
            )
        if self.levels is not None and LEVELS[self.levels].changes_density and choice.learned_levels:
            raise ValueError(
                f"levels {self.levels} does not go with recipe {self.recipe}, which learns its noise schedule"
            )

    def _check_loss(self, choice: RecipeChoice) -> None:
        if self.weight is not None:
            weight = WEIGHTS[self.weight]
            if choice.cold or choice.tokens or choice.mixed:
                raise ValueError(f"weight must be null for recipe {self.recipe}, whose loss has none")
            if choice.own_weight:
                raise ValueError(f"weight must be null for recipe {self.recipe}, which learns its own")
            if weight.learned and choice.own_loss:
                raise ValueError(
                    f"weight {self.weight} does not go with recipe {self.recipe}, which trains its variance by its own loss"
                )
            if weight.needs_schedule and choice.schedule is None:
                names = ", ".join(name for name, other in RECIPES.items() if other.schedule is not None)
                raise ValueError(
                    f"weight {self.weight} needs a recipe whose time is uniform on a noise schedule: {names}"
                )
        if self.loss is not None and (choice.own_loss or choice.cold or choice.tokens or choice.mixed):
            raise ValueError(f"loss must be null for recipe {self.recipe}, which has a loss of its own")

    def check_size(self, size: int) -> None:
        """Raise ValueError if the recipe cannot be trained on pictures (or latents) of this side."""
        choice = RECIPES[self.recipe]
        if choice.check_size is not None:
            choice.check_size(size, **numbers(choice.parameters, self.parameters))

    def check_steps(self, steps: int) -> None:
        """Raise ValueError if a discrete chain of noise levels has fewer levels than sampling would visit."""
        chain = RECIPES[self.recipe].parameters.get("total")
        if chain is None:
            return
        most = self.parameters.get("total") or chain.default
        if isinstance(most, int | float) and steps > most:
            raise ValueError(f"steps must be at most {most:g}, the total of recipe {self.recipe}, got {steps}")

    @property
    def predicts(self) -> str | None:
        """What the network predicts, by its name in TARGETS; None if it is something of the recipe's own."""
        return self.target or next(iter(RECIPES[self.recipe].targets), None)

    @property
    def values(self) -> dict[str, Value]:
        """The recipe's parameters with their defaults."""
        known = RECIPES[self.recipe].parameters
        return {name: self.parameters.get(name) or parameter.default for name, parameter in known.items()}

    @property
    def measured(self) -> list[str]:
        """The parameters that are to be measured of the data."""
        return [name for name, value in self.parameters.items() if value == AUTO]

    def make(self, sd: float, size: int = 64, codes: int = 0) -> Recipe:
        """The recipe for data of standard deviation sd; pictures have side `size`, and tokens are below `codes`.

        Raises ValueError as `check` does, and if a parameter is still to be measured.
        """
        self.check()
        if self.measured:
            raise ValueError(f"{', '.join(self.measured)} of recipe {self.recipe} must be measured first")
        choice = RECIPES[self.recipe]
        parameters = numbers(choice.parameters, self.parameters)
        recipe = choice.make(sd, size, **parameters, **({"codes": codes} if choice.tokens else {}))
        if self.target is not None and self.target != choice.targets[0]:
            target = TARGETS[self.target].make()
            recipe = recipe.replace(target=target)
            if not choice.own_weight:
                recipe = recipe.replace(weight=core("losses").unit(target))
        if self.loss is not None:
            loss = LOSSES[self.loss].make()
            recipe = recipe.replace(loss=core("loss_weights").Uncertainty(inner=loss) if choice.own_weight else loss)
        if self.weight is not None:
            schedule = choice.schedule(size, **parameters) if choice.schedule else None
            recipe = WEIGHTS[self.weight].apply(recipe, schedule)
        if self.noise != "normal":
            recipe = recipe.replace(noise=NOISES[self.noise].make())
        return recipe if self.levels is None else LEVELS[self.levels].apply(recipe)


DEFAULT_SAMPLER = "unipc"


def default_sampler(recipe: str) -> str:
    """The sampler of a recipe where none is chosen."""
    return next(iter(RECIPES[recipe].samplers), DEFAULT_SAMPLER)


def fill_in(parameters: Mapping[str, Value], measured: Mapping[str, float]) -> dict[str, Value]:
    """The parameters with AUTO replaced by what was measured."""
    return {name: measured[name] if value == AUTO else value for name, value in parameters.items()}
