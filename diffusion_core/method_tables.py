"""All tables of methods that can be chosen by name, for those who list them: the command `methods`, the documentation, tags.

A method that is added to one of the tables is in all of these places.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_core.choice_table import Choice
from diffusion_core.choices import GUIDANCE_SCHEDULES, SAMPLERS, THRESHOLDS, TIMESTEPS, Options, Sampling
from diffusion_core.distill_choices import DISTILLATIONS
from diffusion_core.training_choices import LEVELS, LOSSES, NOISES, RECIPES, TARGETS, WEIGHTS, Training

# The name of a table is that of the key of params.yaml that takes a name from it.
TABLES: Mapping[str, Mapping[str, Choice]] = {
    "recipe": RECIPES,
    "target": TARGETS,
    "weight": WEIGHTS,
    "levels": LEVELS,
    "noise": NOISES,
    "loss": LOSSES,
    "distill": DISTILLATIONS,
    "sampler": SAMPLERS,
    "timesteps": TIMESTEPS,
    "schedule": GUIDANCE_SCHEDULES,
    "threshold": THRESHOLDS,
}


def rows(table: str) -> list[tuple[str, str, str]]:
    """The rows of a table in Markdown: title, name, and parameters with their defaults; call; paper."""
    return [
        (f"{choice.title}, `{name}`{_parameters(choice)}", f"`{choice.code}`", choice.paper)
        for name, choice in TABLES[table].items()
    ]


def _parameters(choice: Choice) -> str:
    given = (
        name if parameter.default is None else f"{name} {parameter.default:g}"
        for name, parameter in choice.parameters.items()
    )
    return f" ({', '.join(given)})" if choice.parameters else ""


def of_training(training: Training) -> dict[str, str]:
    """What is chosen of a training, in words by table; what is the recipe's own is left out."""
    chosen = {
        "recipe": training.recipe,
        "target": training.target,
        "weight": training.weight,
        "levels": training.levels,
        "noise": None if training.noise == "normal" else training.noise,
        "loss": training.loss,
    }
    words = {table: described(table, name) for table, name in chosen.items() if name is not None}
    numbers = [f"{name} {value}" for name, value in training.parameters.items() if value is not None]
    return words | ({"parameters": ", ".join(numbers)} if numbers else {})


def of_sampling(sampling: Sampling) -> dict[str, str]:
    """What is chosen of the sampling, in words by table; what is the recipe's own is left out."""
    sampler = described("sampler", sampling.sampler, sampling.options)
    words = {"sampler": f"{sampler}, {sampling.steps} steps"}
    if sampling.timesteps is not None:
        words["timesteps"] = described("timesteps", sampling.timesteps, sampling.options)
    return words


def described(table: str, name: str, options: Options | None = None) -> str:
    """A method in words: its title, name and paper, and what its options say of its parameters."""
    choice = TABLES[table][name]
    given = (options or {}).get(name, {})
    numbers = "".join(f", {parameter} {value}" for parameter, value in given.items() if value is not None)
    return f"{choice.title} ({name}, {choice.paper}){numbers}"
