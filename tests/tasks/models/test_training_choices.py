"""Targets, noises, losses and parameters of recipes; cold diffusion through the stages; what cannot work is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_core import training_choices
from diffusion_core.schedules import Level
from diffusion_core.training.data_scale import data_scale
from diffusion_core.training_choices import RECIPES, Training
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.evaluate.membership_inference import loss_gaps
from tasks.models import inputs, modality, model_file, sampler
from tasks.sample import stage as sample
from tasks.train import stage as train
from tests.support.workspaces import one_step_workspace, write_params, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    write_shards(root)
    return root / "data"


def _trained(root: Path, name: str) -> modality.Model:
    train.run(load(root / "params.yaml"), root, name)
    return model_file.load(paths.model_folder(root, name), torch.device("cpu"))


def _checked(training: Training) -> bool:
    try:
        training.check()
    except ValueError:
        return False
    return True


VARIANTS = [
    Training(recipe, target=target, noise=noise, loss=loss)
    for recipe in RECIPES
    for target, noise, loss in [
        *((target, "normal", None) for target in training_choices.TARGETS),
        *((None, noise, None) for noise in training_choices.NOISES if noise != "normal"),
        *((None, "normal", loss) for loss in training_choices.LOSSES),
    ]
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_target_noise_and_loss_has_finite_gradients(recipe: str) -> None:
    torch.manual_seed(0)
    x0 = 0.5 * torch.randn(16, 3, 8, 8)
    for training in (one for one in VARIANTS if one.recipe == recipe and _checked(one)):
        made = training.make(0.5, 8)
        net = made.network(
            lambda maps, outputs: _Unconditional(torch.nn.Conv2d(3 * (1 + len(maps)), 3 * outputs, 3, padding=1), maps)
        )
        denoiser = made.denoiser(net)
        level = made.density(made.draw(0, 0, 16))
        loss = made.loss(denoiser, x0, level, made.noise((3, 8, 8), 0, torch.arange(16)), made.weight, {})
        assert loss.shape == (16,) and bool(loss.isfinite().all()), training
        loss.mean().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters()), training
        first, *_ = made.timesteps(5)
        denoised = denoiser(torch.randn(2, 3, 8, 8), first, {})
        assert bool(denoised.isfinite().all()), training


class _Unconditional(torch.nn.Module):
    def __init__(self, net: torch.nn.Module, maps: Sequence[str]) -> None:
        super().__init__()
        self.net, self.maps = net, maps

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
        given = [cond.get(key, torch.zeros_like(x)) for key in self.maps]
        y: torch.Tensor = self.net(torch.cat([x, *given], 1)) + 0 * c_noise.mean()
        return y


def test_each_recipe_is_refused_what_it_determines_itself() -> None:
    refused = {recipe: [one for one in VARIANTS if one.recipe == recipe and not _checked(one)] for recipe in RECIPES}
    assert not refused["ddpm"] and not refused["score_ve"] and not refused["simple_diffusion"]
    assert {one.target for one in refused["edm"]} == set(training_choices.TARGETS)
    assert {one.target for one in refused["rectified_flow"]} == {"noise"}
    assert {one.loss for one in refused["vdm"]} == {None, *training_choices.LOSSES}
    assert len(refused["cold_blur"]) == sum(one.recipe == "cold_blur" for one in VARIANTS)


def _fingerprint(training: Training) -> torch.Tensor:
    """The levels that are trained, those that are visited, and what becomes of an example."""
    recipe = training.make(0.5, 16)
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    trained = recipe.density(u)
    visited = recipe.timesteps(15)
    level = Level(torch.tensor(0.1, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    x = recipe.corrupt(
        torch.linspace(-1, 1, 3 * 256).reshape(1, 3, 16, 16).double().cos(), level, torch.zeros(1, 3, 16, 16)
    )
    parts = [*trained, *(torch.stack([level.s / torch.hypot(*level) for level in visited]),), x.flatten()]
    return torch.cat([part.detach().flatten() for part in parts])


# Parameters of recipes of tokens act on decoding alone, those of games on the loss.
@pytest.mark.parametrize(
    ("recipe", "name"),
    [(recipe, name) for recipe, c in RECIPES.items() if not (c.tokens or c.own_steps) for name in c.parameters],
)
def test_every_parameter_changes_its_recipe(recipe: str, name: str) -> None:
    parameter = RECIPES[recipe].parameters[name]
    default = _fingerprint(Training(recipe))
    if parameter.default is not None:
        assert torch.equal(_fingerprint(Training(recipe, {name: parameter.default})), default)
    assert torch.equal(_fingerprint(Training(recipe, {name: None})), default)
    values = [parameter.low, 8 if recipe == "cold_downsample" else parameter.high]
    changed = [_fingerprint(Training(recipe, {name: value})) for value in values]
    assert any(other.shape != default.shape or not torch.allclose(other, default) for other in changed)


def test_auto_is_measured_of_the_data(shards: Path, tmp_path: Path) -> None:
    auto = {"edm": {"p_mean": "auto", "p_std": "auto"}}
    root = one_step_workspace(tmp_path, shards, poses__options=auto)
    model = _trained(root, "poses")
    x0 = model.codec.encode(model.examples(ShardDataset(root / "data/shards", "train")).x0)
    mirrored = inputs.examples(
        ShardDataset(root / "data/shards", "train"), model.config, model.categories, mirrored=True
    )
    scale = data_scale(model.codec.encode(mirrored.x0))
    assert model.config.options["edm"] == {"p_mean": round(scale.mean, 2), "p_std": round(scale.std, 2)}
    median = model.recipe.density(torch.tensor([0.5], dtype=torch.float64)).sigma.log()
    assert float(median) == pytest.approx(scale.mean, abs=0.006)
    assert len(x0) == 60


def test_cold_poses_through_the_stages(shards: Path, tmp_path: Path) -> None:
    """Trained, sampled, and judged by its losses; the joints that do not fade come from the fitted distribution."""
    root = one_step_workspace(tmp_path, shards, poses__recipe="cold_mask", sample__poses__sampler="cold")
    model = _trained(root, "poses")
    sample.run(load(root / "params.yaml"), root, "poses")
    poses = ShardDataset(root / "samples/poses", "samples").poses()
    assert np.isfinite(poses).all() and len(np.unique(poses[:, 0, 0])) == 4
    assert loss_gaps(root, "poses", 16)
    with pytest.raises(UserError, match="fill in joints"):
        sampler.draw(
            model, model.conditions([None]), SamplingChoices(sampler="cold", steps=2), 0, torch.arange(1),
            joints=torch.full((33, 3), torch.nan),
        )  # fmt: skip


@pytest.mark.parametrize("recipe", ["cold_blur", "cold_downsample"])
def test_cold_pictures_are_trained_and_sampled(recipe: str, shards: Path, tmp_path: Path) -> None:
    root = one_step_workspace(tmp_path, shards, pictures__recipe=recipe, sample__pictures__sampler="cold")
    model = _trained(root, "pictures")
    poses = ShardDataset(root / "data/shards", "train").poses()[:2]
    how = SamplingChoices(sampler="cold", steps=3, guidance=2.0)
    drawn = sampler.draw(model, model.conditions(["calm", "wild"], poses), how, 0, torch.arange(2))
    assert drawn.shape == (2, 3, 16, 16)


def test_gamma_noise_is_what_sampling_starts_from(shards: Path, tmp_path: Path) -> None:
    root = one_step_workspace(tmp_path, shards, poses__noise="gamma", poses__loss="huber")
    model = _trained(root, "poses")
    how = SamplingChoices(sampler="ddim", steps=1)
    drawn = sampler.draw(model, model.conditions([None] * 64), how, 0, torch.arange(64))
    normal = modality.Model(**{**vars(model), "recipe": model.recipe.replace(noise=Training("edm").make(0.5).noise)})
    other = sampler.draw(normal, model.conditions([None] * 64), how, 0, torch.arange(64))
    assert not torch.allclose(drawn, other)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"poses__options": {"eddm": {}}}, "no recipe 'eddm'"),
        ({"poses__options": {"ddpm": {"p_mean": 0.0}}}, "recipe ddpm has no parameter p_mean"),
        ({"poses__options": {"edm": {"p_std": 0.0}}}, "p_std of recipe edm"),
        ({"poses__options": {"edm": {"p_std": "wide"}}}, "p_std of recipe edm must be a number or auto"),
        ({"poses__options": {"ddpm": {"total": "auto"}}}, "total of recipe ddpm must be a number"),
        ({"poses__options": {"ddpm": {"total": 50.5}}}, "total of recipe ddpm must be an integer"),
        (
            {"poses__recipe": "ddpm", "poses__options": {"ddpm": {"total": 20}}, "sample__poses__steps": 21},
            "at most 20",
        ),
        ({"poses__target": "score"}, "poses.target"),
        ({"poses__target": "v"}, "target must be null for recipe edm"),
        ({"poses__recipe": "sd3", "poses__target": "noise"}, "target must be null or one of velocity"),
        ({"poses__loss": "l3"}, "poses.loss"),
        ({"poses__recipe": "iddpm", "poses__loss": "l1"}, "loss must be null for recipe iddpm"),
        ({"pictures__noise": "cauchy"}, "pictures.noise"),
        ({"poses__recipe": "vdm", "poses__noise": "gamma"}, "noise gamma does not go with recipe vdm"),
        ({"poses__recipe": "cold_mask"}, "sampler unipc does not go with recipe cold_mask"),
        ({"sample__pictures__sampler": "cold"}, "sampler cold needs a recipe that adds no noise"),
        ({"poses__recipe": "cold_blur", "sample__poses__sampler": "cold"}, "recipe cold_blur needs pictures"),
        ({"pictures__recipe": "cold_mask", "pictures__noise": "gamma"}, "noise must be normal"),
        ({"pictures__recipe": "cold_mask", "pictures__self_condition": True}, "self_condition must be false"),
        (
            {
                "pictures__recipe": "cold_downsample",
                "sample__pictures__sampler": "cold",
                "pictures__options": {"cold_downsample": {"factor": 5}},
            },
            "factor of recipe cold_downsample",
        ),
        ({"pictures__latent_self_conditioning": 0.5}, "latent_self_conditioning needs net rin"),
    ],
)
def test_what_cannot_work_is_one_sentence(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(key)) as caught:
        load(write_params(tmp_path, **changes))
    assert "\n" not in str(caught.value)
