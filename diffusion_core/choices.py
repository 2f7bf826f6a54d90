"""The methods that can be chosen by name, such as in `params.yaml`: recipes, loss weights, draws of noise levels, samplers.

To offer another method, add it to one of the tables. Importing this module does not import torch: the constructors do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_core.recipe import Recipe
    from diffusion_core.sampling.loop import Step
    from diffusion_core.sampling.timesteps import Timesteps
    from diffusion_core.schedules import NoiseSchedule


def _core(module: str) -> Any:
    return import_module(f"diffusion_core.{module}")


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe of `presets`. `make`: (standard deviation of the data, side of a picture in pixels) -> recipe.

    `schedule`: the noise schedule on which its time is uniform, which the weight `elbo` needs. `own_weight`: its loss
    determines the weights of the noise levels. `own_loss`: it trains something besides the denoiser by a loss of its own.
    `lognormal`: the logarithm of sigma is normal in training, and its constructor takes `p_mean` and `p_std`.
    """

    paper: str
    make: Callable[..., Recipe]
    schedule: Callable[[int], NoiseSchedule] | None = None
    own_weight: bool = False
    own_loss: bool = False
    lognormal: bool = False


RECIPES: Mapping[str, RecipeChoice] = {
    "ddpm": RecipeChoice(
        "arXiv 2006.11239",
        lambda sd, size: _core("presets").ddpm(sd),
        lambda size: _core("schedules").betas(_core("schedules").linear_betas(1000)),
    ),
    "iddpm": RecipeChoice("arXiv 2102.09672", lambda sd, size: _core("presets").iddpm(sd), own_loss=True),
    "ncsn": RecipeChoice("arXiv 1907.05600", lambda sd, size: _core("presets").ncsn(sd)),
    "score_vp": RecipeChoice(
        "arXiv 2011.13456",
        lambda sd, size: _core("presets").score_sde(_core("schedules").vp(), sd),
        lambda size: _core("schedules").vp(),
    ),
    "score_subvp": RecipeChoice(
        "arXiv 2011.13456",
        lambda sd, size: _core("presets").score_sde(_core("schedules").sub_vp(), sd),
        lambda size: _core("schedules").sub_vp(),
    ),
    "score_ve": RecipeChoice("arXiv 2011.13456", lambda sd, size: _core("presets").score_ve(sd)),
    "vdm": RecipeChoice(
        "arXiv 2107.00630",
        lambda sd, size: _core("presets").vdm(_core("extras.vdm").LearnedSchedule(), sd),
        own_weight=True,
        own_loss=True,
    ),
    "edm": RecipeChoice("arXiv 2206.00364", lambda sd, size, **p: _core("presets").edm(sd, **p), lognormal=True),
    "edm2": RecipeChoice(
        "arXiv 2312.02696", lambda sd, size, **p: _core("presets").edm2(sd, **p), own_weight=True, lognormal=True
    ),
    "rectified_flow": RecipeChoice(
        "arXiv 2209.03003",
        lambda sd, size: _core("presets").rectified_flow(sd),
        lambda size: _core("schedules").linear(),
    ),
    "sd3": RecipeChoice("arXiv 2403.03206", lambda sd, size: _core("presets").sd3(sd)),
    "simple_diffusion": RecipeChoice(
        "arXiv 2301.11093",
        lambda sd, size: _core("presets").simple_diffusion(sd, size),
        lambda size: _core("schedules").shift(_core("schedules").trig(), 64 / size),
    ),
    "trigflow": RecipeChoice(
        "arXiv 2410.11081", lambda sd, size, **p: _core("presets").trigflow(sd, **p), lognormal=True
    ),
}

# Name -> (recipe, its schedule) -> the recipe with this weight of the squared error.
WEIGHTS: Mapping[str, Callable[[Recipe, NoiseSchedule | None], Recipe]] = {
    "unit": lambda recipe, _: recipe.replace(weight=_core("losses").unit(recipe.target)),
    "min_snr": lambda recipe, _: recipe.replace(weight=_core("loss_weights").min_snr()),
    "soft_min_snr": lambda recipe, _: recipe.replace(weight=_core("loss_weights").soft_min_snr(recipe.sd)),
    "p2": lambda recipe, _: recipe.replace(weight=_core("loss_weights").p2()),
    "debiased": lambda recipe, _: recipe.replace(weight=_core("loss_weights").debiased()),
    "elbo": lambda recipe, schedule: recipe.replace(weight=_core("loss_weights").elbo(schedule)),
    "uncertainty": lambda recipe, _: recipe.replace(loss=_core("loss_weights").Uncertainty()),
}

# Name -> recipe -> the recipe with its training levels drawn in this way.
LEVELS: Mapping[str, Callable[[Recipe], Recipe]] = {
    "independent": lambda recipe: recipe.replace(draw=_core("losses").iid),
    "stratified": lambda recipe: recipe.replace(draw=_core("losses").stratified),
    "importance": lambda recipe: recipe.replace(importance=_core("importance_sampling").Importance()),
}


@dataclass(frozen=True)
class SamplerChoice:
    """A solver and the levels that it visits. `evaluations`: of the denoiser in each step.

    `timesteps`: (recipe's name, recipe, number of steps) -> levels. `uses_variance`: whether it uses a learned variance of x0.
    """

    paper: str
    step: Callable[[Recipe], Step]
    timesteps: Callable[[str, Recipe, int], Timesteps]
    evaluations: int = 1
    uses_variance: bool = False


def _distinct(name: str, recipe: Recipe, steps: int) -> Timesteps:
    """The recipe's timesteps without the repetitions that its own Langevin steps need."""
    if name == "ncsn":
        recipe = _core("presets").ncsn(recipe.sd, levels=steps)
    timesteps = recipe.timesteps(steps)
    return [level for i, level in enumerate(timesteps) if i == 0 or level != timesteps[i - 1]]


def _repeated(name: str, recipe: Recipe, steps: int) -> Timesteps:
    """Each noisy level twice: a predictor step, then a corrector step."""
    repeated: Timesteps = _core("sampling.timesteps").repeat_levels(_distinct(name, recipe, steps), 1)
    return repeated


_LANGEVIN_STEPS = 20  # per level; Song & Ermon make 100


def _annealed(name: str, recipe: Recipe, steps: int) -> Timesteps:
    """`steps` levels without scaling of the data, as NCSN has them, each repeated for the Langevin steps."""
    ncsn: Recipe = _core("presets").ncsn(recipe.sd, levels=steps, langevin_steps=_LANGEVIN_STEPS)
    return ncsn.timesteps(steps)


def _heun(recipe: Recipe) -> Step:
    solvers = _core("sampling.solvers")
    flow = recipe.target is _core("targets").FLOW
    step: Step = solvers.heun(solvers.FLOW_ODE if flow else solvers.SIGMA_ODE)
    return step


def _predictor_corrector(recipe: Recipe) -> Step:
    langevin, solvers = _core("sampling.langevin"), _core("sampling.solvers")
    corrector = langevin.langevin(langevin.signal_to_noise())
    step: Step = langevin.predictor_corrector(solvers.ddim(eta=1), corrector)
    return step


SAMPLERS: Mapping[str, SamplerChoice] = {
    "ddpm": SamplerChoice("arXiv 2006.11239", lambda r: _core("sampling.solvers").ddim(eta=1), _distinct, 1, True),
    "ddim": SamplerChoice("arXiv 2010.02502", lambda r: _core("sampling.solvers").ddim(), _distinct),
    "heun": SamplerChoice("arXiv 2206.00364", _heun, _distinct, 2),
    "dpmpp_2m": SamplerChoice("arXiv 2211.01095", lambda r: _core("sampling.solvers").dpmpp_2m(), _distinct),
    "dpmpp_2m_sde": SamplerChoice("arXiv 2211.01095", lambda r: _core("sampling.solvers").dpmpp_2m(eta=1), _distinct),
    "dpmpp_3m_sde": SamplerChoice("arXiv 2305.14267", lambda r: _core("sampling.solvers").dpmpp_3m(eta=1), _distinct),
    "unipc": SamplerChoice("arXiv 2302.04867", lambda r: _core("sampling.solvers").unipc(), _distinct),
    "lms": SamplerChoice("arXiv 2202.09778", lambda r: _core("sampling.solvers").lms(), _distinct),
    "predictor_corrector": SamplerChoice("arXiv 2011.13456", _predictor_corrector, _repeated, 2),
    "langevin": SamplerChoice("arXiv 1907.05600", lambda r: _core("presets").ncsn().step, _annealed, _LANGEVIN_STEPS),
}


def check_name(table: Mapping[str, object], kind: str, name: str) -> str:
    """The name itself. Raises ValueError, which lists the names of the table, if it has no such name."""
    if name not in table:
        raise ValueError(f"there is no {kind} {name!r}; choose one of {', '.join(table)}")
    return name


def check_training(recipe: str, weight: str | None, levels: str | None) -> None:
    """Raise ValueError, with a clause that says why, if these choices do not go together. None is the recipe's own."""
    choice = RECIPES[recipe]
    if weight is not None and choice.own_weight:
        raise ValueError(f"weight must be null for recipe {recipe}, which learns its own")
    if weight == "uncertainty" and choice.own_loss:
        raise ValueError(
            f"weight uncertainty does not go with recipe {recipe}, which trains its variance by its own loss"
        )
    if weight == "elbo" and choice.schedule is None:
        names = ", ".join(name for name, other in RECIPES.items() if other.schedule is not None)
        raise ValueError(f"weight elbo needs a recipe whose time is uniform on a noise schedule: {names}")
    if levels == "importance" and choice.own_loss and choice.own_weight:
        raise ValueError(f"levels importance does not go with recipe {recipe}, which learns its noise schedule")


def make_recipe(
    name: str,
    weight: str | None,
    levels: str | None,
    sd: float,
    size: int = 64,
    p_mean: float | None = None,
    p_std: float | None = None,
) -> Recipe:
    """The recipe for data of standard deviation sd with these choices (None: the recipe's own); pictures have side `size`.

    `p_mean` and `p_std` are used by recipes whose training levels are log-normal. Raises ValueError as `check_training` does.
    """
    check_training(name, weight, levels)
    choice = RECIPES[name]
    given = {key: value for key, value in (("p_mean", p_mean), ("p_std", p_std)) if value is not None}
    recipe = choice.make(sd, size, **(given if choice.lognormal else {}))
    if weight is not None:
        recipe = WEIGHTS[weight](recipe, choice.schedule(size) if choice.schedule else None)
    return recipe if levels is None else LEVELS[levels](recipe)


def make_sampler(name: str, recipe_name: str, recipe: Recipe, steps: int) -> tuple[Timesteps, Step]:
    """The levels to visit, on the CPU, and the solver."""
    choice = SAMPLERS[name]
    level = _core("schedules").Level
    timesteps = [level(a.detach().cpu(), s.detach().cpu()) for a, s in choice.timesteps(recipe_name, recipe, steps)]
    return timesteps, choice.step(recipe)
