"""Every recipe, weight, way to draw levels and sampler that params.yaml offers trains and samples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core import choices, training_choices
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.config.sampling import Guidance, SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import inputs, modality, model_file, sampler
from tasks.sample import stage as sample
from tasks.train import stage as train
from tests.support.project import PROJECT
from tests.support.workspaces import one_step_workspace, write_params, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_shards(root)
    return root / "data"


def _train(root: Path, model: str) -> None:
    train.run(load(root / "params.yaml"), root, model)


FOR_POSES = [name for name, choice in training_choices.RECIPES.items() if not choice.pictures_only]


def _goes_together(sampler_name: str, recipe: str) -> bool:
    try:
        choices.Sampling(sampler_name).check_recipe(training_choices.Training(recipe))
    except ValueError:
        return False
    return True


LONG = ("vae", "gan", "diffuse_vae", "lsgm", "diffflow")  # their stages are those of ddgan


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in FOR_POSES]
)
def test_every_recipe_trains_and_samples(recipe: str, shards: Path, tmp_path: Path) -> None:
    """The pose model through the stages; then every sampler, with and without guidance, on the trained model."""
    sampler_name = training_choices.default_sampler(recipe)
    changes = {"poses__recipe": recipe, "sample__poses__steps": 2, "sample__poses__sampler": sampler_name}
    root = one_step_workspace(tmp_path, shards, **changes)
    _train(root, "poses")
    sample.run(load(root / "params.yaml"), root, "poses")
    assert np.isfinite(ShardDataset(root / "samples/poses", "samples").poses()).all()
    model = model_file.load(paths.model_folder(root, "poses"), torch.device("cpu"))
    assert model.config.recipe == recipe
    cond = model.conditions(["calm", "wild"])
    for name in (name for name in choices.SAMPLERS if _goes_together(name, recipe)):
        for scale in (1.0, 2.0):
            sampler.draw(
                model, cond, SamplingChoices(sampler=name, steps=3, guidance=scale), 0, torch.arange(2)
            )  # raises DataError if it is not finite


def test_a_self_conditioned_pose_model_trains(shards: Path, tmp_path: Path) -> None:
    root = one_step_workspace(tmp_path, shards, poses__recipe="iddpm", poses__self_condition=True)
    _train(root, "poses")
    model = model_file.load(paths.model_folder(root, "poses"), torch.device("cpu"))
    assert sampler.draw(model, model.conditions(["calm"]), SamplingChoices(steps=2), 0, torch.arange(1)).shape == (
        1,
        33,
        3,
    )


@pytest.mark.parametrize("recipe", ["iddpm", "vdm", "rectified_flow", "simple_diffusion"])
def test_recipes_of_pictures(recipe: str, shards: Path, tmp_path: Path) -> None:
    """Those that change the network, learn a schedule, predict something else, or depend on the size of pictures."""
    root = one_step_workspace(tmp_path, shards, pictures__recipe=recipe, pictures__self_condition=recipe == "iddpm")
    _train(root, "pictures")
    model = model_file.load(paths.model_folder(root, "pictures"), torch.device("cpu"))
    poses = ShardDataset(root / "data/shards", "train").poses()[:2]
    for name in ("ddpm", "unipc"):
        how = SamplingChoices(sampler=name, steps=2)
        drawn = sampler.draw(model, model.conditions(["calm", "wild"], poses), how, 0, torch.arange(2))
        assert drawn.shape == (2, 3, 16, 16)


def _allowed(recipe: str, weight: str | None, levels: str | None) -> bool:
    try:
        training_choices.Training(recipe, weight=weight, levels=levels).check()
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("recipe", FOR_POSES)
def test_every_weight_and_draw_of_levels_has_finite_gradients_or_is_refused(recipe: str, tmp_path: Path) -> None:
    refused = {name for name in training_choices.WEIGHTS if not _allowed(recipe, name, None)}
    if recipe in ("vdm", "edm2", "cold_mask") or training_choices.RECIPES[recipe].mixed:
        assert refused == set(training_choices.WEIGHTS)
    else:
        assert refused <= {"elbo", "uncertainty"}
    torch.manual_seed(0)
    x0 = 0.5 * torch.randn(16, 33, 3)
    config = load(write_params(tmp_path)).poses
    for weight in [None, *training_choices.WEIGHTS]:
        for levels in [None, *training_choices.LEVELS]:
            if not _allowed(recipe, weight, levels):
                continue
            made = modality.build("poses", config.model_copy(update={"recipe": recipe, "weight": weight, "levels": levels}),
                                  ["calm", "wild"], inputs.fit_codec(x0, True), 0.08)  # fmt: skip
            if levels == "importance":
                assert made.recipe.importance is not None
            u = made.recipe.draw(0, 0, 16)
            level = made.recipe.density(u)
            loss = made.recipe.loss(made.denoiser, x0, level, torch.randn(16, 33, 3), made.recipe.weight, {})
            assert loss.shape == (16,) and bool(loss.isfinite().all()), (weight, levels)
            loss.mean().backward()
            gradients = [p.grad for p in made.denoiser.parameters() if p.grad is not None]
            assert gradients and all(bool(g.isfinite().all()) for g in gradients), (weight, levels)


def test_a_learned_schedule_is_part_of_the_model(shards: Path, tmp_path: Path) -> None:
    root = one_step_workspace(
        tmp_path,
        shards,
        poses__recipe="vdm",
        poses__learning_rate=0.03,
        poses__images=320,
        poses__checkpoint_images=320,
    )
    _train(root, "poses")
    model = model_file.load(paths.model_folder(root, "poses"), torch.device("cpu"))
    fresh = modality.build("poses", model.config, model.categories, model.codec, model.margin)
    learned, initial = (dict(one.recipe.density.named_parameters()) for one in (model, fresh))  # type: ignore[attr-defined]
    assert not torch.allclose(learned["shares"], initial["shares"], atol=1e-3)


@pytest.fixture(scope="module")
def model(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> modality.Model:
    """A pose model of the default recipe."""
    root = one_step_workspace(
        tmp_path_factory.mktemp("default"), shards, poses__images=640, poses__checkpoint_images=640
    )
    _train(root, "poses")
    return model_file.load(paths.model_folder(root, "poses"), torch.device("cpu"))


def test_samplers_differ_and_the_default_is_unipc(model: modality.Model) -> None:
    cond = model.conditions(["calm"] * 2)
    names = [name for name in choices.SAMPLERS if _goes_together(name, "edm")]
    drawn = {
        name: sampler.draw(model, cond, SamplingChoices(sampler=name, steps=5), 0, torch.arange(2)) for name in names
    }
    assert torch.equal(drawn["unipc"], sampler.draw(model, cond, SamplingChoices(steps=5), 0, torch.arange(2)))
    assert torch.equal(drawn.pop("euler"), drawn["ddim"])  # without churn it is DDIM
    for name, values in drawn.items():
        others = [other for other in drawn if other != name]
        assert all(not torch.allclose(values, drawn[other], atol=1e-6) for other in others), name


def test_options_of_guidance_change_the_samples(model: modality.Model) -> None:
    def draw(guidance: Guidance | float) -> torch.Tensor:
        how = SamplingChoices(steps=5, guidance=guidance)
        return sampler.draw(model, model.conditions(["wild"] * 2), how, 0, torch.arange(2))

    guided = draw(Guidance(scale=4.0))
    assert torch.equal(guided, draw(4.0)) and torch.equal(guided, draw(Guidance(scale=4.0, without=["category"])))
    assert torch.equal(draw(1.0), draw(Guidance(scale=4.0, interval=[200.0, 300.0])))  # no level lies in it
    for changed in (Guidance(scale=4.0, interval=[0.1, 1.0]), Guidance(scale=4.0, rescale=0.7)):
        assert not torch.allclose(draw(changed), guided, atol=1e-6) and not torch.allclose(
            draw(changed), draw(1.0), atol=1e-6
        )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"poses__recipe": "dppm"}, "poses.recipe"),
        ({"poses__weight": "none"}, "poses.weight"),
        ({"pictures__levels": "sobol"}, "pictures.levels"),
        ({"sample__pictures__sampler": "eular"}, "sample.pictures.sampler"),
        ({"poses__recipe": "vdm", "poses__weight": "p2"}, "weight must be null for recipe vdm"),
        ({"poses__recipe": "iddpm", "poses__weight": "uncertainty"}, "uncertainty does not go with recipe iddpm"),
        ({"poses__weight": "elbo"}, "weight elbo needs a recipe"),
        ({"poses__recipe": "vdm", "poses__levels": "importance"}, "importance does not go with recipe vdm"),
        ({"pictures__condition_dropout": 0.0}, "pictures.condition_dropout"),
        ({"sample__pictures__guidance": {"scale": 2.0, "without": ["pose_map"]}}, "pictures.condition_dropout_each"),
        ({"sample__poses__guidance": {"scale": 2.0, "without": ["pose_map"]}}, "pose_map is not in poses.conditions"),
        ({"sample__poses__guidance": {"scale": 2.0, "interval": [1.0, 0.5]}}, "sample.poses.guidance"),
        ({"sample__poses__guidance": {"strength": 2.0}}, "sample.poses.guidance"),
        ({"sample__poses__guidance": -1.0}, "sample.poses.guidance"),
        ({"poses__conditions": [], "sample__poses__guidance": 2.0}, "sample.poses.guidance needs a condition"),
    ],
)
def test_what_cannot_work_is_one_sentence(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(key)) as caught:
        load(write_params(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_reading_parameters_does_not_import_torch() -> None:
    code = "import sys, tasks.config.params; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, timeout=120).returncode == 0
