"""All tables of methods that can be chosen by name, for those who list them: the command `methods`, the documentation, tags.

A method that is added to one of the tables is in all of these places.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffusion_core.choice_table import Choice
from diffusion_core.choices import SAMPLERS
from diffusion_core.training_choices import LEVELS, LOSSES, NOISES, RECIPES, TARGETS, WEIGHTS, Training

# The name of a table is that of the key of params.yaml that takes a name from it.
TABLES: Mapping[str, Mapping[str, Choice]] = {
    "recipe": RECIPES,
    "target": TARGETS,
    "weight": WEIGHTS,
    "levels": LEVELS,
    "noise": NOISES,
    "loss": LOSSES,
    "sampler": SAMPLERS,
}


def rows(table: str) -> list[tuple[str, str, str]]:
    """The rows of a table in Markdown: title and name, call, paper."""
    return [(f"{choice.title}, `{name}`", f"`{choice.code}`", choice.paper) for name, choice in TABLES[table].items()]


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


def described(table: str, name: str) -> str:
    """A method in words: its title, name and paper."""
    choice = TABLES[table][name]
    return f"{choice.title} ({name}, {choice.paper})"
