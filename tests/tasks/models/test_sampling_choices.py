"""Everything that `sample.poses` and `sample.pictures` offer, on a tiny trained model: used, or refused with a sentence."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_core import choices
from diffusion_core.schedules import sigma_level
from tasks import paths
from tasks.common.errors import DataError, UserError
from tasks.config.params import load
from tasks.config.sampling import Guidance, SamplingChoices, Start
from tasks.dataset.shards import ShardDataset
from tasks.models import modality, model_file, sampler
from tasks.models.guiding import guided, sampling_denoiser
from tasks.registry import model_registry
from tasks.sample import stage as sample
from tasks.train import stage as train
from tests.support.workspaces import write_params, write_shards

SNAPSHOT = f"power_0.1-{320:012d}"
IDS = torch.arange(2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a trained pose model and snapshots of its training."""
    root = tmp_path_factory.mktemp("workspace")
    write_shards(root)
    write_params(
        root, poses__images=640, poses__checkpoint_images=640, poses__power_averages=[0.1], poses__snapshot_images=320,
        sample__poses__count=4,
    )  # fmt: skip
    train.run(load(root / "params.yaml"), root, "poses")
    return root


@pytest.fixture(scope="module")
def model(root: Path) -> modality.Model:
    return model_file.load(paths.model_folder(root, "poses"), torch.device("cpu"))


def draw(model: modality.Model, how: SamplingChoices, **given: Any) -> Tensor:
    return sampler.Sampler(model, how, **given).draw(model.conditions(["calm", "wild"]), 0, IDS)


def with_noise() -> list[str]:
    return [
        name for name, choice in choices.SAMPLERS.items() if not choice.cold and not choice.tokens and not choice.own
    ]


@pytest.mark.parametrize("name", with_noise())
def test_a_sample_does_not_depend_on_its_batch_and_every_parameter_matters(name: str, model: modality.Model) -> None:
    plain = draw(model, SamplingChoices(sampler=name, steps=6))
    how = SamplingChoices(sampler=name, steps=6)
    alone = sampler.draw(model, model.conditions(["wild"]), how, 0, torch.tensor([1]))
    torch.testing.assert_close(alone[0], plain[1], rtol=1e-4, atol=1e-4)
    base = {"churn": 3.0} if "churn" in choices.SAMPLERS[name].parameters else {}
    reference = draw(model, SamplingChoices(sampler=name, steps=6, options={name: base})) if base else plain
    for key, parameter in choices.SAMPLERS[name].parameters.items():
        other = {
            "eta": 0.3, "order": 1, "low": 0.3, "high": 5.0, "times": 3, "snr": 0.3, "corrections": 2, "rate": 0.1,
            "repeats": 3, "churn": 1.0, "churn_min": 1.0, "churn_max": 1.0, "rtol": 0.5, "atol": 0.5,
        }[key]  # fmt: skip
        assert other != parameter.default
        changed = draw(model, SamplingChoices(sampler=name, steps=6, options={name: base | {key: other}}))
        assert not torch.allclose(changed, reference, atol=1e-5), key


@pytest.mark.parametrize("name", choices.TIMESTEPS)
def test_every_choice_of_timesteps_changes_the_samples(name: str, model: modality.Model) -> None:
    given: dict[str, dict[str, float | None]] = {"learned": {"iterations": 2, "fine": 8}} if name == "learned" else {}
    values = draw(model, SamplingChoices(sampler="dpmpp_2m", steps=4, timesteps=name, options=given))
    # The recipe is EDM, whose own timesteps are Karras's.
    assert torch.allclose(values, draw(model, SamplingChoices(sampler="dpmpp_2m", steps=4)), atol=1e-5) == (
        name == "karras"
    )


def test_learned_timesteps_do_not_depend_on_what_is_asked_for(model: modality.Model) -> None:
    how = SamplingChoices(
        sampler="ddim", steps=4, timesteps="learned", options={"learned": {"iterations": 2, "fine": 8}}
    )
    first, second = (sampler.Sampler(model, how).timesteps for _ in range(2))
    assert all(torch.equal(a.s, b.s) for a, b in zip(first, second, strict=True))
    assert all(a.noisier(b) for a, b in pairwise(first))


def test_every_part_of_guidance_changes_the_samples(model: modality.Model) -> None:
    def guided(**given: Any) -> Tensor:
        return draw(model, SamplingChoices(steps=6, guidance=Guidance(**given)))

    drawn = {
        "none": guided(scale=1.0),
        "plain": guided(scale=4.0),
        "ramp": guided(scale=4.0, schedule="ramp"),
        "ramp from 2": guided(scale=4.0, schedule="ramp", options={"ramp": {"first": 2.0}}),
        "oscillating": guided(scale=4.0, schedule="oscillating", options={"oscillating": {"start": 1}}),
        "oscillating, low 2": guided(
            scale=4.0, schedule="oscillating", options={"oscillating": {"start": 1, "low": 2.0}}
        ),
        "interval": guided(scale=4.0, interval=[0.1, 5.0]),
        "rescale": guided(scale=4.0, rescale=0.7),
        "negative": guided(scale=4.0, negative="calm"),
        "static": guided(scale=4.0, threshold="static", options={"static": {"limit": 0.5}}),
        "dynamic": guided(scale=4.0, threshold="dynamic", options={"dynamic": {"limit": 0.5}}),
        "quantile": guided(scale=4.0, threshold="dynamic", options={"dynamic": {"limit": 0.5, "quantile": 0.8}}),
    }
    for name, values in drawn.items():
        assert all(not torch.allclose(values, drawn[other], atol=1e-6) for other in drawn if other != name), name
    # Away from the category that is asked for is no guidance.
    assert torch.allclose(drawn["negative"][0], drawn["none"][0], atol=1e-5)


@pytest.mark.parametrize("name", [name for name, one in choices.THRESHOLDS.items() if "limit" in one.parameters])
def test_thresholds_bound_the_estimate_in_the_datas_units(name: str, model: modality.Model) -> None:
    limit = 0.75
    guidance = Guidance(scale=30.0, threshold=name, options={name: {"limit": limit}})
    level = sigma_level(torch.tensor(2.0, dtype=torch.float64))
    x = 2 * torch.randn(2, 33, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond = model.conditions(["calm", "wild"])
    for one, bounded in ((Guidance(scale=30.0), False), (guidance, True)):
        x0 = model.codec.decode(guided(model, one)(x, level, cond))
        assert (float(x0.abs().max()) <= limit + 1e-6) == bounded


@pytest.mark.parametrize("recipe", ["ddpm", "iddpm"])
def test_recipes_that_predict_noise_keep_to_the_range_of_the_training_data(recipe: str, tmp_path: Path) -> None:
    write_shards(tmp_path)
    images = {"poses__images": 32, "poses__warmup_images": 0, "poses__checkpoint_images": 32}
    params = load(write_params(tmp_path, poses__recipe=recipe, poses__cooldown_images=0, **images))
    train.run(params, tmp_path, "poses")
    model = model_file.load(paths.model_folder(tmp_path, "poses"), torch.device("cpu"))
    poses = torch.from_numpy(ShardDataset(tmp_path / paths.SHARDS, "train").poses())
    low, high = (of(model.codec.encode(poses), 0) for of in (torch.amin, torch.amax))
    assert model.limits is not None
    assert bool(
        (model.limits[0] <= low + 1e-5).all() and (model.limits[1] >= high - 1e-5).all()
    )  # mirror images widen it
    level = sigma_level(torch.tensor(100.0, dtype=torch.float64))
    x = 100 * torch.randn(2, 33, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond = model.conditions(["calm", "wild"])

    def inside(guidance: Guidance, sampler: str) -> bool:
        denoised = sampling_denoiser(model, guidance, sampler)(x, level, cond)
        x0 = denoised if isinstance(denoised, Tensor) else denoised.mean
        assert model.limits is not None
        return bool((x0 >= model.limits[0] - 1e-6).all() and (x0 <= model.limits[1] + 1e-6).all())

    assert inside(Guidance(), "unipc") and inside(Guidance(), "ddpm") and inside(Guidance(scale=5.0), "unipc")
    assert not inside(Guidance(threshold="none"), "unipc")
    unknown = replace(model, limits=None)
    with pytest.raises(UserError, match="has no range"):
        guided(unknown, 1.0)
    assert not torch.allclose(
        guided(unknown, Guidance(threshold="none"))(x, level, cond), guided(model, 1.0)(x, level, cond)
    )


def test_the_default_recipe_has_no_limits(root: Path, model: modality.Model) -> None:
    level = sigma_level(torch.tensor(100.0, dtype=torch.float64))
    x = 100 * torch.randn(2, 33, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cond = model.conditions(["calm", "wild"])
    assert model.limits is None
    assert torch.equal(guided(model, 1.0)(x, level, cond), model.denoiser(x, level, cond))


def test_autoguidance_by_the_model_itself_is_no_guidance_and_by_a_snapshot_it_is(
    root: Path, model: modality.Model
) -> None:
    params, folder = load(root / "params.yaml"), paths.model_folder(root, "poses")
    plain = draw(model, SamplingChoices(steps=6))
    drawn = {}
    for reference in (paths.model_sha256(root, "poses"), SNAPSHOT):
        how = SamplingChoices(steps=6, guidance=Guidance(scale=3.0, weak_model=reference))
        prepared = model_registry.sampler(params, root, folder, how)
        drawn[reference] = prepared.draw(model.conditions(["calm", "wild"]), 0, IDS)
    own, snapshot = drawn.values()
    torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(snapshot, plain, atol=1e-4)
    missing = SamplingChoices(guidance=Guidance(scale=3.0, weak_model=f"power_0.1-{1:012d}"))
    with pytest.raises(DataError, match="does not exist"):
        model_registry.sampler(params, root, folder, missing)
    with pytest.raises(DataError, match="no poses model"):
        model_registry.find(params, root, "poses", "0" * 64)


def test_a_weaker_model_must_be_of_the_same_kind(model: modality.Model) -> None:
    other = modality.Model(**{**vars(model), "categories": ["calm", "loud"]})
    with pytest.raises(UserError, match="same categories"):
        model.check_same_kind(other)
    with pytest.raises(UserError, match="not at hand"):
        draw(model, SamplingChoices(guidance=Guidance(scale=2.0, weak_model="0" * 64)))


def test_sampling_starts_from_a_normal_law_or_from_another_models_samples(root: Path, model: modality.Model) -> None:
    low = draw(model, SamplingChoices(steps=6, start=Start(sigma=1e-3)))
    z = model.codec.encode(low)
    assert 0.2 < float(z.std()) < 0.8  # close to the start itself, whose standard deviation is 0.5
    sha256 = paths.model_sha256(root, "poses")
    how = SamplingChoices(steps=6, start=Start(sigma=1e-3, model=sha256))
    prepared = model_registry.sampler(load(root / "params.yaml"), root, paths.model_folder(root, "poses"), how)
    again = prepared.draw(model.conditions(["calm", "wild"]), 0, IDS)
    assert not torch.allclose(again, low, atol=1e-2)
    start = prepared._start(model.conditions(["calm", "wild"]), 0, IDS, 128)
    assert start is not None
    torch.testing.assert_close(model.codec.encode(again), start, rtol=0, atol=0.05)


def test_a_gan_of_noisy_poses_is_a_start_without_more_noise(model: modality.Model) -> None:
    """TDPM: its samples are x at the start's sigma already. Another sigma is refused."""
    changes = {"recipe": "gan", "options": {"gan": {"sigma": 2.0}}}
    config = model.config.model_copy(update=changes)
    gan = modality.build("poses", config, model.categories, model.codec, model.margin)
    gan.denoiser.eval().requires_grad_(False)
    cond = model.conditions(["calm", "wild"])
    start = Start(sigma=2.0, model="0" * 64)
    prepared = sampler.Sampler(model, SamplingChoices(steps=4, start=start), source=gan)
    assert prepared._start_is_noisy()
    assert bool(prepared.draw(cond, 0, IDS).isfinite().all())
    own = sampler.Sampler(model, SamplingChoices(steps=4, start=start), source=model)
    assert not own._start_is_noisy()
    with pytest.raises(UserError, match="sigma"):
        sampler.Sampler(model, SamplingChoices(steps=4, start=Start(sigma=1.0, model="0" * 64)), source=gan).draw(
            cond, 0, IDS
        )


def test_the_stage_samples_with_all_of_it_and_says_so(root: Path) -> None:
    chosen = {
        "sampler": "restart", "timesteps": "searched", "options": {"restart": {"times": 1}}, "start": {"sigma": 20.0},
        "guidance": {"scale": 2.0, "weak_model": SNAPSHOT, "schedule": "ramp"},
    }  # fmt: skip
    text = (root / "params.yaml").read_text()
    write_params(
        root, poses__images=640, poses__checkpoint_images=640, poses__power_averages=[0.1], poses__snapshot_images=320,
        sample__poses__count=4, **{f"sample__poses__{key}": value for key, value in chosen.items()},
    )  # fmt: skip
    try:
        params = load(root / "params.yaml")
        sample.run(params, root, "poses")
    finally:
        (root / "params.yaml").write_text(text)
    folder = paths.sample_folder(root, "poses")
    assert torch.from_numpy(ShardDataset(folder, "samples").poses()).isfinite().all()
    assert ShardDataset(folder, "samples").about["sampling"] == {"steps": 4, **chosen}
    card = model_registry.card_of(paths.model_folder(root, "poses"), "CLEAN", {}, [], params.sample.poses)
    for words in (
        "| sampler | Restart",
        "times 1",
        "| timesteps | Timesteps by dynamic programming",
        SNAPSHOT,
        "sigma 20",
    ):
        assert words in card


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "unipc", "options": {"unipc": {"eta": 0.5}}}, "method unipc has no parameter eta; it has order"),
        ({"options": {"ddim": {"eta": 2.0}}}, "eta of method ddim must be a number from 0 to 1"),
        ({"timesteps": "karass"}, "sample.poses.timesteps"),
        ({"sampler": "ode", "timesteps": "karras"}, "timesteps must be null for sampler ode"),
        ({"start": {"sigma": 0.0}}, "sample.poses.start.sigma"),
        ({"start": {"sigma": 1.0, "model": "champion"}}, "sample.poses.start.model"),
        ({"guidance": {"scale": 2.0, "schedule": "sine"}}, "schedule"),
        (
            {"guidance": {"options": {"ramp": {"low": 1.0}}}},
            "option of guidance ramp has no parameter low; it has first",
        ),
        ({"guidance": {"threshold": "dynamic"}}, "sample.poses.guidance.options.dynamic.limit is missing"),
        ({"guidance": {"threshold": "range"}}, "guidance.threshold range needs one of the recipes ddpm, iddpm"),
        ({"guidance": {"weak_model": SNAPSHOT, "negative": "calm"}}, "weak_model and negative exclude each other"),
        ({"guidance": {"weak_model": "champion"}}, "weak_model"),
    ],
)
def test_what_cannot_work_is_one_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        load(write_params(tmp_path, **{f"sample__poses__{key}": value for key, value in changes.items()}))
    assert "\n" not in str(caught.value)
