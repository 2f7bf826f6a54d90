"""The methods of sampling that can be chosen by name, such as in `params.yaml`; `training_choices` has those of training.

To offer another method, add it to the table. Importing this module does not import torch: the constructors do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion_core.choice_table import Choice, core
from diffusion_core.training_choices import RECIPES

if TYPE_CHECKING:
    from diffusion_core.recipe import Recipe
    from diffusion_core.sampling.loop import Step
    from diffusion_core.sampling.timesteps import Timesteps


def _distinct(name: str, recipe: Recipe, steps: int) -> Timesteps:
    """The recipe's timesteps without the repetitions that its own Langevin steps need."""
    if name == "ncsn":
        timesteps = core("presets").ncsn(recipe.sd, *_sigma_range(name, recipe), levels=steps).timesteps(steps)
    else:
        timesteps = recipe.timesteps(steps)
    return [level for i, level in enumerate(timesteps) if i == 0 or level != timesteps[i - 1]]


def _sigma_range(name: str, recipe: Recipe) -> tuple[float, float]:
    """The smallest and largest noise level of NCSN: those of the recipe if it is one, otherwise those of the paper."""
    if name != "ncsn":
        return 0.01, 20.0
    noisy = [float(level.sigma) for level in recipe.timesteps(1) if level.s > 0]
    return noisy[-1], noisy[0]


def _repeated(name: str, recipe: Recipe, steps: int) -> Timesteps:
    """Each noisy level twice: a predictor step, then a corrector step."""
    repeated: Timesteps = core("sampling.timesteps").repeat_levels(_distinct(name, recipe, steps), 1)
    return repeated


_LANGEVIN_STEPS = 20  # per level; Song & Ermon make 100


def _annealed(name: str, recipe: Recipe, steps: int) -> Timesteps:
    """`steps` levels without scaling of the data, as NCSN has them, each repeated for the Langevin steps."""
    ncsn: Recipe = core("presets").ncsn(
        recipe.sd, *_sigma_range(name, recipe), levels=steps, langevin_steps=_LANGEVIN_STEPS
    )
    return ncsn.timesteps(steps)


def _heun(recipe: Recipe) -> Step:
    solvers = core("sampling.solvers")
    flow = recipe.target is core("targets").FLOW
    step: Step = solvers.heun(solvers.FLOW_ODE if flow else solvers.SIGMA_ODE)
    return step


def _predictor_corrector(recipe: Recipe) -> Step:
    langevin, solvers = core("sampling.langevin"), core("sampling.solvers")
    corrector = langevin.langevin(langevin.signal_to_noise())
    step: Step = langevin.predictor_corrector(solvers.ddim(eta=1), corrector)
    return step


@dataclass(frozen=True, kw_only=True)
class SamplerChoice(Choice):
    """A solver and the levels that it visits. `evaluations`: of the denoiser in each step.

    `timesteps`: (recipe's name, recipe, number of steps) -> levels. `uses_variance`: whether it uses a learned variance of x0.
    """

    step: Callable[[Recipe], Step]
    timesteps: Callable[[str, Recipe, int], Timesteps] = _distinct
    evaluations: int = 1
    uses_variance: bool = False
    needs_cold: bool = False  # whether it goes with cold diffusion only


SAMPLERS: Mapping[str, SamplerChoice] = {
    "ddpm": SamplerChoice(
        title="DDPM, ancestral", code="sampling.solvers.ddim(eta=1)", paper="arXiv 2006.11239", uses_variance=True,
        step=lambda r: core("sampling.solvers").ddim(eta=1),
    ),
    "ddim": SamplerChoice(
        title="DDIM, Euler", code="sampling.solvers.ddim()", paper="arXiv 2010.02502",
        step=lambda r: core("sampling.solvers").ddim(),
    ),
    "heun": SamplerChoice(
        title="Heun (EDM)", code="sampling.solvers.heun()", paper="arXiv 2206.00364", step=_heun, evaluations=2
    ),
    "dpmpp_2m": SamplerChoice(
        title="DPM-Solver++ 2M", code="sampling.solvers.dpmpp_2m()", paper="arXiv 2211.01095",
        step=lambda r: core("sampling.solvers").dpmpp_2m(),
    ),
    "dpmpp_2m_sde": SamplerChoice(
        title="DPM-Solver++ 2M SDE", code="sampling.solvers.dpmpp_2m(eta=1)", paper="arXiv 2211.01095",
        step=lambda r: core("sampling.solvers").dpmpp_2m(eta=1),
    ),
    "dpmpp_3m_sde": SamplerChoice(
        title="DPM-Solver++ 3M SDE", code="sampling.solvers.dpmpp_3m(eta=1)", paper="arXiv 2305.14267",
        step=lambda r: core("sampling.solvers").dpmpp_3m(eta=1),
    ),
    "unipc": SamplerChoice(
        title="UniPC", code="sampling.solvers.unipc", paper="arXiv 2302.04867",
        step=lambda r: core("sampling.solvers").unipc(),
    ),
    "lms": SamplerChoice(
        title="LMS", code="sampling.solvers.lms", paper="arXiv 2202.09778", step=lambda r: core("sampling.solvers").lms()
    ),
    "predictor_corrector": SamplerChoice(
        title="Predictor-corrector", code="sampling.langevin.predictor_corrector", paper="arXiv 2011.13456",
        step=_predictor_corrector, timesteps=_repeated, evaluations=2,
    ),
    "langevin": SamplerChoice(
        title="Annealed Langevin dynamics", code="sampling.langevin.langevin", paper="arXiv 1907.05600",
        step=lambda r: core("presets").ncsn().step, timesteps=_annealed, evaluations=_LANGEVIN_STEPS,
    ),
    "cold": SamplerChoice(
        title="Cold diffusion, improved sampling", code="extras.corruptions.cold", paper="arXiv 2208.09392", needs_cold=True,
        step=lambda r: core("extras.corruptions").cold(r.degrade),
    ),
}  # fmt: skip


def check_sampler(name: str, recipe: str) -> None:
    """Raise ValueError if a model of this recipe cannot be sampled in this way."""
    choice = RECIPES[recipe]
    if choice.samplers and name not in choice.samplers:
        raise ValueError(f"sampler must be {' or '.join(choice.samplers)} for recipe {recipe}, got {name}")
    if SAMPLERS[name].needs_cold and not choice.cold:
        recipes = ", ".join(other for other, entry in RECIPES.items() if entry.cold)
        raise ValueError(f"sampler {name} needs a recipe that adds no noise: {recipes}")


def make_sampler(name: str, recipe_name: str, recipe: Recipe, steps: int) -> tuple[Timesteps, Step]:
    """The levels to visit, on the CPU, and the solver."""
    choice = SAMPLERS[name]
    level = core("schedules").Level
    timesteps = [level(a.detach().cpu(), s.detach().cpu()) for a, s in choice.timesteps(recipe_name, recipe, steps)]
    return timesteps, choice.step(recipe)
