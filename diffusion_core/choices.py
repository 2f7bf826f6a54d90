"""The ways to sample that can be chosen by name, such as in `params.yaml`: samplers, timesteps, guidance.

`training_choices` has the methods of training. To offer another way to sample, add it to one of the tables. Importing this
module does not import torch: the constructors do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from diffusion_core.choice_table import Choice, Parameter, Value, check_name, check_parameters, core, numbers
from diffusion_core.training_choices import RANGE, RECIPES, Training

if TYPE_CHECKING:
    from diffusion_core.denoiser import Denoiser
    from diffusion_core.error_curve import ErrorCurve
    from diffusion_core.guidance import Strength
    from diffusion_core.recipe import Recipe
    from diffusion_core.sampling.loop import Step
    from diffusion_core.sampling.timesteps import Timesteps
    from diffusion_core.schedules import Level

Options = Mapping[str, Mapping[str, Value]]  # method -> its parameters, used if that method is chosen


def options_of(table: Mapping[str, Any], name: str, options: Options) -> dict[str, Any]:
    """The values of all parameters of an entry of a table: those in the options, and the defaults of the others."""
    parameters: Mapping[str, Parameter] = table[name].parameters
    defaults: dict[str, Value] = {key: parameter.default for key, parameter in parameters.items()}
    given: dict[str, Value] = {key: value for key, value in options.get(name, {}).items() if value is not None}
    return {**dict.fromkeys(defaults), **numbers(parameters, defaults | given)}


def check_options(tables: Sequence[Mapping[str, Any]], kind: str, options: Options) -> None:
    """Raise ValueError if a method is not in one of the tables, or cannot have a parameter or value that is given."""
    methods = {name: choice for table in tables for name, choice in table.items()}
    for name, given in options.items():
        check_name({key: choice for key, choice in methods.items() if choice.parameters}, f"{kind} with options", name)
        check_parameters(methods[name].parameters, f"{kind} {name}", given)


# Samplers


@dataclass(frozen=True, kw_only=True)
class SamplerChoice(Choice):
    """A solver, and what it does to the timesteps. `v` are the values of its parameters.

    `step`: (recipe, v) -> solver. `visited`: (timesteps, v) -> the levels that it visits, such as each of them several times.
    `evaluations`: of the denoiser in each step by default; 0 if it depends on the model. `noisy`: v -> whether it adds noise.
    `follows_ode`: one deterministic step for each timestep, unless it adds noise. `variance`: that of x0 given x which it uses
    in the noise that it adds, if there is one: learned by the network, or measured. `cold`: it goes with cold diffusion only.
    `tokens`: it goes with recipes of tokens only. `own`: with recipes that have steps of their
    own only, whatever number is asked for.
    """

    step: Callable[[Recipe, Any], Step]
    visited: Callable[[Timesteps, Any], Timesteps] = lambda timesteps, v: timesteps
    evaluations: int = 1
    noisy: Callable[[Any], bool] = lambda v: False
    follows_ode: bool = False
    variance: Literal["none", "learned", "measured"] = "none"
    cold: bool = False
    tokens: bool = False
    own: bool = False


def _always(v: Any) -> bool:
    return True


def _churns(v: Any) -> bool:
    return bool(v["churn"] > 0)


def _has_eta(v: Any) -> bool:
    return bool(v["eta"] > 0)


def _heun(recipe: Recipe, v: Any) -> Step:
    solvers = core("sampling.solvers")
    flow = recipe.target is core("targets").FLOW
    step: Step = solvers.heun(solvers.FLOW_ODE if flow else solvers.SIGMA_ODE)
    return step


def _predictor_corrector(recipe: Recipe, v: Any) -> Step:
    langevin, solvers = core("sampling.langevin"), core("sampling.solvers")
    corrector = langevin.langevin(langevin.signal_to_noise(v["snr"]))
    step: Step = langevin.predictor_corrector(solvers.ddim(eta=v["eta"]), corrector)
    return step


def _annealed(recipe: Recipe, v: Any) -> Step:
    langevin = core("sampling.langevin")
    step: Step = langevin.predictor_corrector(langevin.keep_x, langevin.langevin(v["rate"]))
    return step


def _churned(timesteps: Timesteps, v: Any) -> Timesteps:
    raised: Timesteps = core("sampling.timesteps").churn(timesteps, v["churn"], v["churn_min"], v["churn_max"])
    return raised


def _restarted(timesteps: Timesteps, v: Any) -> Timesteps:
    """The interval lies between the timesteps nearest to its ends, so that few timesteps do not miss it."""
    sigmas = [float(level.sigma) for level in timesteps if level.s > 0 and level.a > 0]
    if len(sigmas) < 2:
        return timesteps
    low, high = (min(sigmas, key=lambda sigma: abs(math.log(sigma / end))) for end in (v["low"], v["high"]))
    if low >= high:
        at = min(max(sigmas.index(low), 1), len(sigmas) - 1)
        low, high = sigmas[at], sigmas[at - 1]
    again: Timesteps = core("sampling.timesteps").restart(timesteps, low * (1 - 1e-9), high * (1 + 1e-9), v["times"])
    return again


def _corrected(timesteps: Timesteps, v: Any) -> Timesteps:
    repeated: Timesteps = core("sampling.timesteps").repeat_levels(timesteps, v["corrections"])
    return repeated


def _unscaled(timesteps: Timesteps, v: Any) -> Timesteps:
    """Each level repeated, all with a = 1, since annealed Langevin dynamics does not scale x between them."""
    sigma_level = core("schedules").sigma_level
    return _corrected([sigma_level(level.sigma) for level in timesteps], {"corrections": v["repeats"]})


def _ends(timesteps: Timesteps, v: Any) -> Timesteps:
    noisy = [level for level in timesteps if level.s > 0]
    return [noisy[0], noisy[-1], timesteps[-1]] if len(noisy) > 1 else timesteps


ETA = Parameter("share of the noise of DDPM's step", 1.0, 0.01, 1.0)
CHURN = {
    "churn": Parameter("noise that is added before the steps, S_churn", 0.0, 0.0, 1000.0),
    "churn_min": Parameter("smallest sigma at which it is added", 0.0, 0.0, 1e6),
    "churn_max": Parameter("largest sigma at which it is added", 1e6, 0.0, 1e6),
}

SAMPLERS: Mapping[str, SamplerChoice] = {
    "ddpm": SamplerChoice(
        title="DDPM, ancestral", code="sampling.solvers.ddim(eta=1)", paper="arXiv 2006.11239",
        step=lambda recipe, v: core("sampling.solvers").ddim(eta=1), noisy=_always, variance="learned",
    ),
    "ddim": SamplerChoice(
        title="DDIM", code="sampling.solvers.ddim()", paper="arXiv 2010.02502",
        step=lambda recipe, v: core("sampling.solvers").ddim(v["eta"]),
        parameters={"eta": Parameter("share of the noise of DDPM's step", 0.0, 0.0, 1.0)},
        noisy=_has_eta, follows_ode=True, variance="learned",
    ),
    "analytic_dpm": SamplerChoice(
        title="Analytic-DPM (measured variance)", code="extras.learned_variance.measured_variance", paper="arXiv 2201.06503",
        step=lambda recipe, v: core("sampling.solvers").ddim(v["eta"]),
        parameters={"eta": ETA}, noisy=_always, variance="measured",
    ),
    "euler": SamplerChoice(
        title="Euler, with churn (EDM)", code="sampling.timesteps.churn", paper="arXiv 2206.00364",
        step=lambda recipe, v: core("sampling.solvers").ddim(), parameters=CHURN, visited=_churned,
        noisy=_churns, follows_ode=True,
    ),
    "heun": SamplerChoice(
        title="Heun, with churn (EDM)", code="sampling.solvers.heun()", paper="arXiv 2206.00364",
        step=_heun, parameters=CHURN, visited=_churned, evaluations=2, noisy=_churns, follows_ode=True,
    ),
    "restart": SamplerChoice(
        title="Restart, with Heun's steps", code="sampling.timesteps.restart", paper="arXiv 2306.14878",
        step=_heun,
        parameters={
            "low": Parameter("sigma at which the interval ends", 0.1, 1e-4, 1e4),
            "high": Parameter("sigma to which noise is added again", 1.0, 1e-4, 1e4),
            "times": Parameter("how often the interval is repeated", 2, 1, 100, integer=True),
        },
        visited=_restarted, evaluations=2, noisy=_always,
    ),
    "dpmpp_2m": SamplerChoice(
        title="DPM-Solver++ 2M", code="sampling.solvers.dpmpp_2m()", paper="arXiv 2211.01095",
        step=lambda recipe, v: core("sampling.solvers").dpmpp_2m(), follows_ode=True,
    ),
    "dpmpp_2m_sde": SamplerChoice(
        title="DPM-Solver++ 2M SDE", code="sampling.solvers.dpmpp_2m(eta=1)", paper="arXiv 2211.01095",
        step=lambda recipe, v: core("sampling.solvers").dpmpp_2m(v["eta"]), parameters={"eta": ETA}, noisy=_always,
    ),
    "dpmpp_3m": SamplerChoice(
        title="DPM-Solver++ 3M", code="sampling.solvers.dpmpp_3m()", paper="arXiv 2305.14267",
        step=lambda recipe, v: core("sampling.solvers").dpmpp_3m(), follows_ode=True,
    ),
    "dpmpp_3m_sde": SamplerChoice(
        title="DPM-Solver++ 3M SDE", code="sampling.solvers.dpmpp_3m(eta=1)", paper="arXiv 2305.14267",
        step=lambda recipe, v: core("sampling.solvers").dpmpp_3m(1.0), noisy=_always,
    ),
    "unipc": SamplerChoice(
        title="UniPC", code="sampling.solvers.unipc", paper="arXiv 2302.04867",
        step=lambda recipe, v: core("sampling.solvers").unipc(v["order"]),
        parameters={"order": Parameter("of the predictor", 2, 1, 3, integer=True)}, follows_ode=True,
    ),
    "lms": SamplerChoice(
        title="LMS", code="sampling.solvers.lms", paper="arXiv 2202.09778",
        step=lambda recipe, v: core("sampling.solvers").lms(v["order"]),
        parameters={"order": Parameter("slopes that are combined", 4, 1, 4, integer=True)}, follows_ode=True,
    ),
    "predictor_corrector": SamplerChoice(
        title="Predictor-corrector", code="sampling.langevin.predictor_corrector", paper="arXiv 2011.13456",
        step=_predictor_corrector,
        parameters={
            "corrections": Parameter("Langevin steps at each level", 1, 1, 1000, integer=True),
            "snr": Parameter("signal-to-noise ratio of these steps", 0.16, 0.001, 1.0),
            "eta": Parameter("share of the noise of DDPM's step in the predictor", 1.0, 0.0, 1.0),
        },
        visited=_corrected, evaluations=2, noisy=_always,
    ),
    "langevin": SamplerChoice(
        title="Annealed Langevin dynamics", code="sampling.langevin.langevin", paper="arXiv 1907.05600",
        step=_annealed,
        parameters={
            "repeats": Parameter("steps at each level; Song & Ermon make 100", 20, 1, 10000, integer=True),
            "rate": Parameter("size of a step over sigma^2", 0.2, 1e-4, 2.0),
        },
        visited=_unscaled, evaluations=20, noisy=_always,
    ),
    "consistency": SamplerChoice(
        title="Consistency sampling, for consistency models", code="sampling.solvers.consistency_step",
        paper="arXiv 2303.01469", step=lambda recipe, v: core("sampling.solvers").consistency_step, noisy=_always,
    ),
    "ode": SamplerChoice(
        title="Probability-flow ODE, adaptive step size", code="sampling.ode.adaptive", paper="arXiv 2011.13456",
        step=lambda recipe, v: core("sampling.ode").adaptive(v["rtol"], v["atol"]),
        parameters={
            "rtol": Parameter("relative tolerance of a step", 1e-3, 1e-9, 1.0),
            "atol": Parameter("absolute tolerance of a step", 1e-3, 1e-9, 1.0),
        },
        visited=_ends, evaluations=0,
    ),
    "cold": SamplerChoice(
        title="Cold diffusion, improved sampling", code="extras.corruptions.cold", paper="arXiv 2208.09392",
        step=lambda recipe, v: core("extras.corruptions").cold(recipe.degrade), cold=True,
    ),
    "unmask": SamplerChoice(
        title="Unmasking, or exchange, of tokens, as the recipe says", code="extras.corruptions.unmask",
        paper="arXiv 2202.04200",
        step=lambda recipe, v: recipe.step, tokens=True, noisy=_always,
    ),
    "own": SamplerChoice(
        title="The steps that a mixed model was trained for", code="sampling.loop.ancestral", paper="arXiv 2112.07804",
        step=lambda recipe, v: recipe.step, own=True, noisy=_always, variance="learned",
    ),
}  # fmt: skip


# Timesteps

FINE = 1000  # levels of a recipe from which timesteps are chosen
CANDIDATES = 250  # of them for the search
SIGMA_IS_TIME = ("edm", "edm2")  # recipes whose noise schedule is sigma(t) = t


@dataclass(frozen=True)
class Known:
    """What timesteps that depend on the model need of it.

    `errors`: its error at each level. `match`: (step, timesteps, fine timesteps, iterations, rate) -> learned timesteps, see
    `timestep_search.match_solution`.
    """

    errors: ErrorCurve | None = None
    match: Callable[[Step, Timesteps, Timesteps, int, float], Timesteps] | None = None


@dataclass(frozen=True)
class Grid:
    """What timesteps are made for: a recipe by its name, and the number of steps."""

    name: str
    recipe: Recipe
    steps: int
    total: int = FINE  # levels of the recipe's discrete chain, if it has one

    def own(self, steps: int) -> list[Level]:
        """The recipe's own timesteps, without the repetitions that its own Langevin steps need."""
        for count in (steps, steps - 1):  # some make one more step than they are asked for, to s = 0
            given = [_on_cpu(level) for level in self.recipe.timesteps(count)]
            timesteps = [level for i, level in enumerate(given) if i == 0 or level != given[i - 1]]
            if len(timesteps) == steps + 1:
                return timesteps
            if len(timesteps) != count + 2:
                break
        # It has a fixed number of levels: as many others between its ends, evenly spaced in log sigma.
        made = core("sampling.timesteps")
        return [*made.geometric(steps, float(timesteps[-2].sigma), float(timesteps[0].sigma)), _clean()]

    def sigmas(self) -> tuple[float, float]:
        """The smallest and the largest sigma of the recipe, at most 160 standard deviations of the data."""
        sigmas = [float(level.sigma) for level in self.fine if level.a > 0]
        largest = 160 * self.recipe.sd
        return sigmas[-1], max(sigma for sigma in sigmas if sigma <= largest)

    @cached_property
    def fine(self) -> list[Level]:
        """Up to FINE noisy levels, evenly spaced in the recipe's time, the noisiest first."""
        count = min(FINE, self.total)
        noisy = [level for level in self.own(count) if level.s > 0]
        if self.name not in SIGMA_IS_TIME:
            return noisy
        import torch

        sigmas = torch.linspace(float(noisy[0].sigma), float(noisy[-1].sigma), count, dtype=torch.float64)
        return [core("schedules").sigma_level(sigma) for sigma in sigmas]

    def at(self, fractions: Sequence[float]) -> list[Level]:
        """The levels at these fractions of the time, 1 for the noisiest and 0 for the least noisy level, and then s = 0.

        Between the fine levels the log-SNR is linear.
        """
        fine = self.fine
        levels = []
        for fraction in fractions:
            index = (1 - fraction) * (len(fine) - 1)
            low = min(int(index + 1e-9), len(fine) - 1)
            share = index - low
            if share < 1e-9:
                levels.append(fine[low])
            else:
                logsnr = fine[low].logsnr + share * (fine[low + 1].logsnr - fine[low].logsnr)
                levels.append(core("schedules").logsnr_level(logsnr))
        return [*levels, _clean()]


def _clean() -> Level:
    level: Level = core("sampling.timesteps").clean()
    return level


def _on_cpu(level: Level) -> Level:
    made: Level = core("schedules").Level(level.a.detach().cpu(), level.s.detach().cpu())
    return made


@dataclass(frozen=True, kw_only=True)
class TimestepsChoice(Choice):
    """Noise levels that a sampler visits. `make`: (grid, v, what is known of the model, solver) -> levels."""

    make: Callable[[Grid, Any, Known, Step], Timesteps]


def _evenly(count: int) -> list[float]:
    return [1 - i / max(count - 1, 1) for i in range(count)]


def _karras(grid: Grid, v: Any, known: Known, step: Step) -> Timesteps:
    smallest, largest = grid.sigmas()
    low, high = v["sigma_min"] or smallest, v["sigma_max"] or largest
    if low >= high:
        raise ValueError(f"sigma_min of timesteps karras must be below sigma_max ({high:g}), got {low:g}")
    timesteps: Timesteps = core("sampling.timesteps").karras(grid.steps, low, high, v["rho"])
    return timesteps


def _leading(grid: Grid, v: Any, known: Known, step: Step) -> Timesteps:
    fine = grid.fine
    return [*(fine[len(fine) - 1 - i * (len(fine) // grid.steps)] for i in range(grid.steps - 1, -1, -1)), _clean()]


def _trailing(grid: Grid, v: Any, known: Known, step: Step) -> Timesteps:
    fine = grid.fine
    return [*(fine[round(i * len(fine) / grid.steps)] for i in range(grid.steps)), _clean()]


def _searched(grid: Grid, v: Any, known: Known, step: Step) -> Timesteps:
    """The path through some of the recipe's levels that is best for the variational bound."""
    import torch

    assert known.errors is not None
    search = core("sampling.timestep_search")
    first = grid.own(grid.steps)[0]
    noisy = [first, *(level for level in grid.own(min(FINE, grid.total)) if level.s > 0 and first.noisier(level))]
    stride = max(1, len(noisy) // max(CANDIDATES, grid.steps))
    levels = [*noisy[:-1:stride], noisy[-1]]
    if grid.steps == 1:
        return [first, _clean()]
    errors = torch.stack([known.errors(level) for level in levels])
    path = search.shortest_path(search.elbo_cost(levels, errors), grid.steps - 1)
    return [*(levels[i] for i in path), _clean()]


def _learned(grid: Grid, v: Any, known: Known, step: Step) -> Timesteps:
    assert known.match is not None
    smallest, largest = grid.sigmas()
    karras = core("sampling.timesteps").karras
    start: Timesteps = karras(grid.steps, smallest, largest)
    if grid.steps < 3:  # there is no level between the noisiest and the least noisy
        return start
    return known.match(
        step, start, karras(max(v["fine"], 2 * grid.steps), smallest, largest), v["iterations"], v["rate"]
    )


TIMESTEPS: Mapping[str, TimestepsChoice] = {
    "karras": TimestepsChoice(
        title="Timesteps even in sigma^(1 / rho)", code="sampling.timesteps.karras", paper="arXiv 2206.00364",
        make=_karras,
        parameters={
            "rho": Parameter("more makes the steps at little noise shorter", 7.0, 1.0, 100.0),
            "sigma_min": Parameter("the last noisy level; by default the recipe's", None, 1e-5, 1e4),
            "sigma_max": Parameter("the first level; by default the recipe's", None, 1e-4, 1e4),
        },
    ),
    "uniform": TimestepsChoice(
        title="Timesteps even in the recipe's time, both ends included", code="sampling.timesteps.uniform",
        paper="arXiv 2102.09672", make=lambda grid, v, known, step: grid.at(_evenly(grid.steps)),
    ),
    "quadratic": TimestepsChoice(
        title="Timesteps even in a root of the recipe's time", code="choices.Grid.at", paper="arXiv 2010.02502",
        make=lambda grid, v, known, step: grid.at([fraction ** v["power"] for fraction in _evenly(grid.steps)]),
        parameters={"power": Parameter("of the time; 2 is quadratic", 2.0, 0.1, 10.0)},
    ),
    "leading": TimestepsChoice(
        title="Timesteps every so many levels, from the least noisy", code="sampling.timesteps.leading",
        paper="arXiv 2010.02502", make=_leading,
    ),
    "trailing": TimestepsChoice(
        title="Timesteps every so many levels, from the noisiest", code="sampling.timesteps.trailing",
        paper="arXiv 2305.08891", make=_trailing,
    ),
    "searched": TimestepsChoice(
        title="Timesteps by dynamic programming", code="sampling.timestep_search.shortest_path", paper="arXiv 2106.03802",
        make=_searched,
    ),
    "learned": TimestepsChoice(
        title="Learned timesteps", code="sampling.timestep_search.match_solution", paper="arXiv 2405.15506",
        make=_learned,
        parameters={
            "iterations": Parameter("of gradient descent", 30, 1, 10000, integer=True),
            "rate": Parameter("learning rate", 0.05, 1e-5, 1.0),
            "fine": Parameter("steps of the solution that is matched", 64, 4, 1000, integer=True),
        },
    ),
}  # fmt: skip


# Guidance


@dataclass(frozen=True, kw_only=True)
class GuidanceSchedule(Choice):
    """A strength of guidance that depends on the noise level. `make`: (scale, v, timesteps) -> strength."""

    make: Callable[[float, Any, Timesteps], Strength]


def _oscillating(scale: float, v: Any, timesteps: Timesteps) -> Strength:
    noisy = [level for level in timesteps if level.s > 0]
    strength: Strength = core("guidance").oscillate(noisy, scale, v["low"], v["start"])
    return strength


GUIDANCE_SCHEDULES: Mapping[str, GuidanceSchedule] = {
    "constant": GuidanceSchedule(
        title="Classifier-free guidance", code="guidance.cfg", paper="arXiv 2207.12598",
        make=lambda scale, v, timesteps: scale,
    ),
    "ramp": GuidanceSchedule(
        title="Guidance that grows linearly in the angle (Muse)", code="guidance.ramp", paper="arXiv 2301.00704",
        make=lambda scale, v, timesteps: core("guidance").ramp(v["first"], scale),
        parameters={"first": Parameter("strength at pure noise", 1.0, 0.0, 100.0)},
    ),
    "oscillating": GuidanceSchedule(
        title="Oscillating guidance", code="guidance.oscillate", paper="arXiv 2210.02303", make=_oscillating,
        parameters={
            "low": Parameter("strength at every second step", 1.0, 0.0, 100.0),
            "start": Parameter("steps before that with the scale", 5, 0, 1000, integer=True),
        },
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ThresholdChoice(Choice):
    """Limits of the estimate of x0. `make`: (denoiser, v) -> denoiser.

    `measured`: v also has `low` and `high`, the smallest and largest values of the training data in the network's units. Models
    have them whose recipe uses this threshold by default.
    """

    measured: bool = False
    make: Callable[[Denoiser, Any], Denoiser]


LIMIT = Parameter("largest absolute value in the data's units; by default 1 for pixels", None, 1e-3, 1e3)

THRESHOLDS: Mapping[str, ThresholdChoice] = {
    "static": ThresholdChoice(
        title="Static thresholding", code="guidance.threshold", paper="arXiv 2205.11487",
        make=lambda denoiser, v: core("guidance").threshold(denoiser, v["limit"]), parameters={"limit": LIMIT},
    ),
    "dynamic": ThresholdChoice(
        title="Dynamic thresholding", code="guidance.dynamic_threshold", paper="arXiv 2205.11487",
        make=lambda denoiser, v: core("guidance").dynamic_threshold(denoiser, v["quantile"], v["limit"]),
        parameters={
            "limit": LIMIT,
            "quantile": Parameter("of the absolute values of an estimate, beyond which it is clamped", 0.995, 0.5, 1.0),
        },
    ),
    RANGE: ThresholdChoice(
        title="Range of the training data, by coordinate or channel", code="guidance.within", paper="arXiv 2006.11239",
        make=lambda denoiser, v: core("guidance").within(denoiser, v["low"], v["high"]), measured=True,
    ),
    "none": ThresholdChoice(
        title="No limit", code="denoiser.Preconditioned", paper="arXiv 2206.00364", make=lambda denoiser, v: denoiser
    ),
}  # fmt: skip


# What goes together

DEFAULT_STEPS = 18


@dataclass(frozen=True)
class Sampling:
    """What is chosen of the sampling: sampler, number of steps, timesteps (None: the recipe's own), and their options.

    `start`: the sigma at which sampling starts instead of the noisiest level; the levels above it are left out.
    """

    sampler: str = "unipc"
    steps: int = DEFAULT_STEPS
    timesteps: str | None = None
    start: float | None = None
    options: Options = field(default_factory=dict)

    @property
    def solver(self) -> SamplerChoice:
        """The sampler's entry in its table."""
        return SAMPLERS[self.sampler]

    def values(self) -> dict[str, Any]:
        """The values of the sampler's parameters."""
        return options_of(SAMPLERS, self.sampler, self.options)

    @property
    def noisy(self) -> bool:
        """Whether the sampler adds noise."""
        return self.solver.noisy(self.values())

    @property
    def needs_errors(self) -> bool:
        """Whether it needs the measured errors of the model."""
        return self.solver.variance == "measured" or self.timesteps == "searched"

    def check(self) -> None:
        """Raise ValueError, with a clause that says why, if these choices do not go together."""
        check_name(SAMPLERS, "sampler", self.sampler)
        if self.timesteps is not None:
            check_name(TIMESTEPS, "timesteps", self.timesteps)
        check_options([SAMPLERS, TIMESTEPS], "method", self.options)
        restart = options_of(SAMPLERS, "restart", self.options)
        if restart["low"] >= restart["high"]:
            raise ValueError(f"low of method restart must be below high ({restart['high']:g}), got {restart['low']:g}")
        if self.start is not None and (self.solver.cold or self.solver.tokens or self.solver.own):
            raise ValueError(f"start must be null for sampler {self.sampler}, which has no noise levels")
        if self.timesteps is None:
            return
        if self.sampler == "ode":
            raise ValueError("timesteps must be null for sampler ode, which chooses its steps itself")
        if self.sampler == "langevin" and self.timesteps != "karras":
            raise ValueError("timesteps must be null or karras for sampler langevin, which starts at a finite sigma")
        if self.solver.cold or self.solver.tokens or self.solver.own:
            raise ValueError(f"timesteps must be null for sampler {self.sampler}, which has no noise levels")
        if self.timesteps == "learned" and (self.noisy or not self.solver.follows_ode):
            names = ", ".join(name for name, choice in SAMPLERS.items() if choice.follows_ode)
            raise ValueError(f"timesteps learned needs a sampler that adds no noise, one of {names}")

    def check_recipe(self, training: Training) -> None:
        """Raise ValueError, with a clause that says why, if a model trained in that way cannot be sampled in this one."""
        name, choice = training.recipe, RECIPES[training.recipe]
        if choice.samplers and self.sampler not in choice.samplers:
            allowed = ", ".join(choice.samplers)
            raise ValueError(f"sampler {self.sampler} does not go with recipe {name}; choose one of {allowed}")
        if self.solver.tokens and not choice.tokens:
            recipes = ", ".join(other for other, entry in RECIPES.items() if entry.tokens)
            raise ValueError(f"sampler {self.sampler} needs a recipe of tokens: {recipes}")
        if self.solver.own and not choice.own_steps:
            recipes = ", ".join(other for other, entry in RECIPES.items() if entry.own_steps)
            raise ValueError(f"sampler {self.sampler} needs a recipe with steps of its own: {recipes}")
        if self.timesteps == "searched" and choice.mixed:
            raise ValueError(f"timesteps searched does not go with recipe {name}, whose errors are not measured")
        if self.start is not None and choice.finished:
            raise ValueError(f"start must be null for recipe {name}, which denoises latents")
        if self.solver.cold and not choice.cold:
            recipes = ", ".join(other for other, entry in RECIPES.items() if entry.cold)
            raise ValueError(f"sampler {self.sampler} needs a recipe that adds no noise: {recipes}")
        training.check_steps(self.steps)

    def make(self, training: Training, recipe: Recipe, known: Known | None = None) -> Made:
        """The levels to visit, on the CPU, and the solver.

        Raises ValueError as `check` and `check_recipe` do, and if a parameter of the timesteps does not fit the recipe.
        """
        self.check()
        self.check_recipe(training)
        values = self.values()
        step = self.solver.step(recipe, values)
        grid = Grid(training.recipe, recipe, self.steps, _total(training))
        if self.timesteps is not None:
            choice = TIMESTEPS[self.timesteps]
            chosen = options_of(TIMESTEPS, self.timesteps, self.options)
            timesteps = choice.make(grid, chosen, known or Known(), step)
        elif self.sampler == "langevin":
            low, high = (0.01, 20.0) if training.recipe != "ncsn" else grid.sigmas()
            timesteps = [*core("sampling.timesteps").geometric(self.steps, low, high), _clean()]
        elif self.solver.own:
            timesteps = [_on_cpu(level) for level in recipe.timesteps(self.steps)]
        else:
            timesteps = grid.own(self.steps)
        if self.start is not None:
            level = core("schedules").sigma_level(_float64(self.start))
            timesteps = core("sampling.timesteps").truncate(timesteps, level)
        return Made(timesteps, self.solver.visited(timesteps, values), step)


@dataclass(frozen=True)
class Made:
    """A sampler: its timesteps, the levels that it visits (such as each of them several times), and its solver."""

    timesteps: Timesteps
    visited: Timesteps
    step: Step


def _float64(value: float) -> Any:
    import torch

    return torch.tensor(value, dtype=torch.float64)


def _total(training: Training) -> int:
    parameters = RECIPES[training.recipe].parameters
    total = training.parameters.get("total") or (parameters["total"].default if "total" in parameters else None)
    return FINE if total is None else int(float(total))
