"""Published models sampled here and by diffusers' pipelines from the same noise give the same latents and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from diffusion_core import codecs, rng
from diffusion_core.conditioning import Cond

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tasks.config.sampling import SamplingChoices
from tasks.foreign import folder, model
from tests.support import tiny_pipelines

CPU = torch.device("cpu")
PROMPTS, UNWANTED = ["a red cat", "blue dogs, two"], "blurry"
SEED = 3
STEPS = 10  # at least 10 of 1000 levels are visited by both alike


def pipeline_of(path: Path, scheduler: str | None = None) -> Any:
    """diffusers' own pipeline of a folder, with another scheduler of the same configuration."""
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(path, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler is not None:
        # The configuration of another scheduler lacks the key, whose default is for pixels.
        options = {"clip_sample": False} if scheduler == "DDIMScheduler" else {}
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **options)
    return pipeline


def noise(shape: tuple[int, ...]) -> Tensor:
    return rng.normal(shape, rng.fold(SEED, 0), torch.arange(len(PROMPTS)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(kind) -> a folder with a tiny model of this kind and the model itself, made once."""
    made: dict[tuple[str, ...], model.ForeignModel] = {}

    def of(*kind: str) -> model.ForeignModel:
        if kind not in made:
            path = tiny_pipelines.stored(tmp_path_factory.mktemp("published"), *kind)
            made[kind] = model.load(path, folder.digest(path), CPU)
        return made[kind]

    return of


CASES = [
    ("sd", "ddim", "DDIMScheduler"),
    ("sd3", "euler", None),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("sd", "euler", "EulerDiscreteScheduler"),
            ("sd", "dpmpp_2m", "DPMSolverMultistepScheduler"),
            ("sdxl", "euler", None),
            ("sdxl", "ddim", "DDIMScheduler"),
            ("sdxl", "dpmpp_2m", "DPMSolverMultistepScheduler"),
            ("flux", "euler", None),
        ]
    ),
]


@pytest.mark.parametrize(("kind", "sampler", "scheduler"), CASES)
def test_latents_agree_with_the_pipeline(stored: Any, kind: str, sampler: str, scheduler: str | None) -> None:
    ours = stored(kind)
    latents, theirs = both(ours, sampler, scheduler)
    assert latents.shape == theirs.shape
    assert (latents - theirs).abs().max() < 1e-4
    assert latents.std() > 0.5  # that of noise and not of a picture that is grey for another reason


def both(ours: model.ForeignModel, sampler: str, scheduler: str | None) -> tuple[Tensor, Tensor]:
    """The latents of both for the same prompts, negative prompt, guidance and noise."""
    how = SamplingChoices(sampler=sampler, steps=STEPS, guidance=4.0)
    cond, unwanted = ours.conditions(PROMPTS), ours.conditions([UNWANTED])
    latents = ours.latents(cond, how, SEED, torch.arange(2), 64, unwanted, batch=2)
    pipeline = pipeline_of(ours.folder.path, scheduler)
    start, options = noise(ours.shape(64)), {"guidance_scale": 4.0}
    if ours.folder.kind == "flux":
        start = pipeline._pack_latents(start, *start.shape)
        options = {"guidance_scale": 3.5, "true_cfg_scale": 4.0}
    theirs = pipeline(
        PROMPTS, height=64, width=64, num_inference_steps=STEPS, latents=start, output_type="latent",
        negative_prompt=[UNWANTED] * 2, **options,
    ).images  # fmt: skip
    if ours.folder.kind == "flux":
        theirs = pipeline._unpack_latents(theirs, 64, 64, pipeline.vae_scale_factor)
    return latents, theirs


@pytest.mark.slow
def test_a_velocity_model_agrees_with_the_pipeline(stored: Any) -> None:
    """v_prediction, as in Stable Diffusion 2: the same weights, read as another target."""
    latents, theirs = both(stored("sd", "v_prediction"), "ddim", "DDIMScheduler")
    assert (latents - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["sd", pytest.param("sd3", marks=pytest.mark.slow)])
def test_the_codec_agrees_with_the_autoencoder(stored: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a processor that multiplies bfloat16."""
    monkeypatch.setattr(codecs, "computes_bf16", lambda device: True)
    ours = stored(kind)
    theirs = pipeline_of(ours.folder.path).vae
    pictures = 2 * rng.uniform((3, 64, 64), 1, torch.arange(2)).float() - 1
    config = theirs.config
    with torch.no_grad():
        coded = (theirs.encode(pictures).latent_dist.mode() - (config.shift_factor or 0)) * config.scaling_factor
        decoded = theirs.decode(coded / config.scaling_factor + (config.shift_factor or 0)).sample
    assert torch.allclose(ours.codec.encode(pictures), coded, atol=1e-5)
    assert torch.allclose(ours.codec.decode(coded), decoded, atol=1e-5)


def test_a_withheld_prompt_is_the_empty_one(stored: Any) -> None:
    """Guidance without a negative prompt and condition dropout in training see what diffusers gives the model."""
    ours = stored("sd")
    x, level = noise(ours.shape(64)).double(), ours.recipe.density(torch.tensor([0.5, 0.9]))
    cond, empty = ours.conditions(PROMPTS), ours.conditions(["", ""])
    half: Cond = {**cond, "keep:tok:text": torch.tensor([True, False])}
    shown, withheld = ours.denoiser(x, level, cond), ours.denoiser(x, level, empty)
    assert torch.equal(ours.denoiser(x, level, {}), withheld)
    assert torch.allclose(ours.denoiser(x, level, half), torch.stack([shown[0], withheld[1]]), atol=1e-5)
    assert (shown - withheld).abs().max() > 1e-4


@pytest.mark.slow
def test_categories_agree_with_the_pipeline(stored: Any) -> None:
    ours = stored("dit")
    how = SamplingChoices(sampler="ddim", steps=STEPS, guidance=2.0)
    drawn = ours.draw(ours.conditions(["7", "category 3"]), how, SEED, torch.arange(2), batch=2)
    pipeline = pipeline_of(ours.folder.path)
    pipeline.scheduler.register_to_config(clip_sample=False)
    with mock.patch("diffusers.pipelines.dit.pipeline_dit.randn_tensor", return_value=noise(ours.shape(64))):
        theirs = pipeline([7, 3], guidance_scale=2.0, num_inference_steps=STEPS, output_type="pt").images
    assert torch.allclose((drawn / 2 + 0.5).clamp(0, 1), theirs, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["heun", "unipc", "ddpm", "dpmpp_3m_sde", "lms", "ode"])
def test_every_kind_of_sampler_draws_pictures(stored: Any, sampler: str) -> None:
    ours = stored("sd3" if sampler == "unipc" else "sd")
    how = SamplingChoices(sampler=sampler, steps=4, guidance=2.0)
    pictures = ours.draw(ours.conditions(PROMPTS), how, SEED, torch.arange(2), 64, batch=2)
    assert pictures.shape == (2, 3, 64, 64) and pictures.isfinite().all()
    alone = ours.draw(ours.conditions(PROMPTS[1:]), how, SEED, torch.arange(1, 2), 64)
    assert torch.allclose(alone[0], pictures[1], atol=1e-3)
