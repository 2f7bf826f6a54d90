"""docs/methods.md: every name exists, every public method is listed, and its recipes run."""

import importlib
import inspect
import re

import pytest

from diffusion_core import extras, guidance, inverse, loss_weights, losses, presets, rng, schedules
from diffusion_core.extras import corruptions
from diffusion_core.recipe import Recipe
from diffusion_core.sampling import langevin, solvers, timestep_search
from diffusion_core.training import distillation, ema
from tests.support.project import PROJECT

PAGE = (PROJECT / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| `(.+?)` \| (.+?) \|$", PAGE, flags=re.M)
NAMES = {name for _, code, _ in ROWS for name in re.findall(r"(?:\w+\.)+\w+", code)}


def resolve(name: str) -> object:
    path = name.split(".")
    for split in range(len(path) - 1, 0, -1):
        try:
            value: object = importlib.import_module("diffusion_core." + ".".join(path[:split]))
        except ModuleNotFoundError:
            continue
        for attribute in path[split:]:
            value = getattr(value, attribute)
        return value
    raise AttributeError(name)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_exists(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("code", [code for _, code, _ in ROWS if code.startswith("presets.")])
def test_recipe_lines_run(code):
    scope = {"presets": presets, "schedules": schedules, "extras": extras, "losses": losses, "rng": rng}
    assert isinstance(eval(code, scope), Recipe)


def test_every_row_has_a_reference():
    assert len(ROWS) > 70
    for method, _, reference in ROWS:
        assert re.fullmatch(r"arXiv \d{4}\.\d{4,5}|ICLR \d{4}, .+", reference), (method, reference)


def public(module) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    }


@pytest.mark.parametrize(
    "module, helpers",
    [
        (presets, set()),
        (solvers, {"consistency_step"}),
        (guidance, {"unconditional", "strength_at"}),
        (inverse, {"matrix", "gaussian_posterior", "normal_prior"}),
        (loss_weights, set()),
        (ema, {"power_gamma", "mix_averages", "post_hoc_error"}),
        (distillation, {"implied_x0"}),
        (timestep_search, {"elbo_cost"}),
        (langevin, {"signal_to_noise", "keep_x"}),
        (corruptions, {"process_time", "cold", "cold_loss", "cosine_basis", "masked_share", "masked_loss"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_method_of_a_module_is_listed(module, helpers):
    listed = {name.split(".")[-1] for name in NAMES}
    assert public(module) - helpers <= listed
