"""Every name in every table runs one step through train, sample and memorization; a name that is not there is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_core import method_tables
from diffusion_core.choices import SAMPLERS, THRESHOLDS, Sampling
from diffusion_core.distill_choices import DISTILLATIONS
from diffusion_core.training_choices import RECIPES, Training, default_sampler
from tasks.common import files
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate.memorization import stage as memorization
from tasks.sample import stage as sample
from tasks.train import distill
from tasks.train import stage as train
from tests.support.evaluation_workspace import make
from tests.support.workspaces import TINY_CODEC, write_params

ONE_STEP = {"images": 32, "warmup_images": 0, "checkpoint_images": 32, "cooldown_images": 0}
TRAINED = {"recipe", "target", "weight", "levels", "noise", "loss"}
SHORTLY = {("recipe", "sd3"), ("loss", "huber"), ("timesteps", "karras")}  # in the default suite
CASES = [(table, name) for table, names in method_tables.TABLES.items() for name in names]


def _first(table: str, name: str) -> Training:
    """A way to train poses in which the name is chosen."""
    for recipe in [name] if table == "recipe" else ["edm", *RECIPES]:
        chosen: dict[str, Any] = {} if table == "recipe" else {table: name}
        training = Training(recipe, **chosen)
        try:
            training.check()
        except ValueError:
            continue
        return training
    raise AssertionError(f"no recipe goes with {table} {name}")


def _way(recipe: str, **chosen: Any) -> Sampling:
    """A way to sample a recipe with these choices, by the first sampler that goes with them."""
    for sampler in [chosen.pop("sampler")] if "sampler" in chosen else [default_sampler(recipe), *SAMPLERS]:
        way = Sampling(sampler, 4, **chosen)
        try:
            way.check()
            way.check_recipe(Training(recipe))
        except ValueError:
            continue
        return way
    raise AssertionError(f"no sampler of {recipe} goes with {chosen}")


def _changes(table: str, name: str) -> dict[str, Any]:
    """The parameters that choose a name, as in `write_params`, for poses or for pictures if it needs them."""
    recipe = "edm"
    changes: dict[str, Any] = {}
    if table in TRAINED:
        training = _first(table, name)
        recipe = training.recipe
        changes = {f"MODEL__{key}": getattr(training, key) for key in TRAINED}
        way = _way(recipe)
    elif table == "sampler":
        recipe = next(one for one in ["edm", *RECIPES] if _allowed(one, name))
        changes = {"MODEL__recipe": recipe}
        way = _way(recipe, sampler=name)
    elif table == "timesteps":
        way = _way(recipe, timesteps=name)
    elif table == "distill":
        student = {"method": name, "steps": 2, "times": 2, **ONE_STEP}
        changes = {"distill": {"poses": student}, "sample__MODEL__model": "poses_student"}
        way = Sampling(DISTILLATIONS[name].sampler, 2)
    else:
        options = {}
        if table == "threshold":
            options = {name: {"limit": 2.0}} if "limit" in THRESHOLDS[name].parameters else {}
            recipe = next(one for one, entry in RECIPES.items() if name in (entry.threshold, "static", "dynamic"))
            changes = {"MODEL__recipe": recipe}
        changes |= {"sample__MODEL__guidance": {"scale": 2.0, table: name, "options": options}}
        way = _way(recipe)
    changes |= {"sample__MODEL__sampler": way.sampler, "sample__MODEL__steps": way.steps}
    changes |= {"sample__MODEL__timesteps": way.timesteps}
    if RECIPES[recipe].tokens:
        changes["codec"] = {**TINY_CODEC, "kind": "vq", "codes": 16}
    model = "pictures" if RECIPES[recipe].pictures_only else "poses"
    return {key.replace("MODEL", model): value for key, value in changes.items()}


def _allowed(recipe: str, sampler: str) -> bool:
    try:
        Sampling(sampler, 4).check_recipe(Training(recipe))
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Shards, and samples of which those of one model are drawn anew in each test."""
    root = tmp_path_factory.mktemp("judged")
    make(root, 60, 20, 10, 40, 40)
    yield root


@pytest.mark.parametrize(
    ("table", "name"),
    [pytest.param(*case, marks=() if case in SHORTLY else pytest.mark.slow, id="-".join(case)) for case in CASES],
)
def test_every_name_runs_through_the_stages(table: str, name: str, judged: Path, tmp_path: Path) -> None:
    changes = _changes(table, name)
    model = "pictures" if any(key.startswith("pictures__") for key in changes) else "poses"
    shutil.copytree(judged / "samples", tmp_path / "samples")
    shutil.copytree(judged / "reports", tmp_path / "reports")
    (tmp_path / "data").symlink_to(judged / "data")
    one_step = {f"{one}__{key}": value for one in ("poses", "pictures") for key, value in ONE_STEP.items()}
    store = f"sqlite:///{judged}/mlflow.db"
    counts = {"sample__poses__count": 40, "sample__pictures__count": 40, "memorization__needed_samples": 39}
    write_params(tmp_path, **{**one_step, **counts, "tracking__store": store, **changes})
    params = load(tmp_path / "params.yaml")
    if params.codec.kind != "none":
        train.run(params, tmp_path, "codec")
    train.run(params, tmp_path, model)
    if table == "distill":
        distill.run(params, tmp_path, model)
    sample.run(params, tmp_path, model)
    drawn = ShardDataset(tmp_path / "samples" / model, "samples")
    assert len(drawn) == 40 and np.isfinite(drawn.poses()).all()
    memorization.run(params, tmp_path)
    verdicts = files.read_json(tmp_path / "reports/memorization/memorization.json")["verdicts"]
    assert verdicts[model] in ("CLEAN", "COPIES", "LOW-POWER", "SPLIT-UNRELIABLE", "TOO-FEW")


@pytest.mark.parametrize("table", method_tables.TABLES)
def test_a_name_that_is_not_in_the_table_is_refused(table: str, tmp_path: Path) -> None:
    keys: dict[str, tuple[str, Any]] = {
        "sampler": ("sample__poses__sampler", "nonsense"),
        "timesteps": ("sample__poses__timesteps", "nonsense"),
        "schedule": ("sample__poses__guidance", {"scale": 2.0, "schedule": "nonsense"}),
        "threshold": ("sample__poses__guidance", {"scale": 2.0, "threshold": "nonsense"}),
        "distill": ("distill", {"poses": {"method": "nonsense"}}),
    }
    key, value = keys.get(table, (f"poses__{table}", "nonsense"))
    with pytest.raises(UserError, match="nonsense") as caught:
        load(write_params(tmp_path, **{key: value}))
    assert "\n" not in str(caught.value)
