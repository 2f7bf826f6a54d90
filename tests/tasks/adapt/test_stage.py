"""LoRA of a tiny published model: files that diffusers and peft read, resumption, and diffusers' own training loop."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core import rng
from diffusion_core.rng import Stream
from diffusion_core.training.trainer import TrainConfig, Trainer

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import diffusers
import peft

from tasks.adapt import certificate, pictures, stage
from tasks.common.errors import UserError
from tasks.config.adapt import Certificate
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.foreign import adapter as adapters
from tasks.foreign import draw, folder, inversion, model
from tests.support import tiny_pipelines
from tests.support.training import interrupted_at
from tests.support.workspaces import write_params, write_shards

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
HOW = SamplingChoices(sampler="ddim", steps=4, guidance=2.0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stored(tmp_path_factory.mktemp("published") / "sd", "sd")


def workspace(root: Path, published: Path, **lora: object) -> Path:
    section = {
        "pictures": "photos", "images": 48, "checkpoint_images": 16, "rank": 2, "alpha": 6.0, "learning_rate": 1e-2,
        "ema_halflife_images": 8, "mirror": True, "caption_dropout": 0.2, "val": 0.3,
        "certificate": None, **lora,
    }  # fmt: skip
    write_params(root, base={"source": str(published), "sha256": folder.digest(published)}, adapt={"lora": section})
    random = np.random.default_rng(0)
    for i in range(8):
        path = root / f"photos/red_cat/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (64, 70, 3), dtype=np.uint8)).save(path)
    return root


def train(root: Path) -> Path:
    torch.set_num_threads(1)
    stage.run(load(root / "params.yaml"), root, "lora")
    return root / "artifacts/lora"


@pytest.fixture(scope="module")
def trained(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    certified = {"samples": 50, "steps": 2}
    return train(workspace(tmp_path_factory.mktemp("workspace"), published, certificate=certified))


def test_the_validation_loss_at_every_level_is_there_without_being_asked_for(trained: Path) -> None:
    training = json.loads((trained / "training.json").read_text())
    assert [len(row["val"]) for row in training["levels"]] == [len(training["sigmas"])] * 3
    assert "held-out" in training["kept"]
    assert all(row["gaps"] for row in training["levels"])
    assert training["levels"][-1]["train"] != training["levels"][0]["train"]


def test_few_pictures_have_a_certificate_with_the_reason(trained: Path) -> None:
    report = json.loads((trained / "certificate.json").read_text())
    assert report["verdict"] == "TOO-FEW" and "8 groups" in report["sentence"]
    assert {name: some["pictures"] for name, some in report["folders"].items()} == {
        "train": 6,
        "heldout": 2,
        "samples": 50,
    }
    assert 0 < report["share_bound"] <= 1
    assert report["nearest"][0]["original"].startswith("red_cat/")
    assert "TOO-FEW" in (trained / "certificate.html").read_text()


def test_an_adapter_that_draws_its_pictures_is_told_with_the_names_of_its_pictures(
    trained: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model.load(published, None, CPU)
    root = workspace(tmp_path, published)
    random = np.random.default_rng(1)
    smooth = random.integers(0, 256, (150, 7, 7, 3), dtype=np.uint8)
    for i, picture in enumerate(smooth):
        path = tmp_path / ("photos/dogs" if i < 40 else "more") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    config = Certificate(samples=50, steps=1, heldout="more")
    splits = pictures.load(root, load(root / "params.yaml").adapt.lora, 64)

    def copied(loaded: object, request: Any, out: Path, about: object) -> None:
        out.mkdir(parents=True, exist_ok=True)
        for i in range(50):
            Image.fromarray(splits.train.pictures[i % len(splits.train)]).save(out / f"{i}.png", "PNG")

    out = tmp_path / "out"
    shutil.copytree(trained, out)
    monkeypatch.setattr(draw, "into", copied)
    outcome = certificate.of_published(root, "lora", config, base, splits, 64, 0, out)
    report = json.loads((out / "certificate.json").read_text())
    assert outcome.verdict == report["verdict"] == "COPIES"
    assert report["folders"]["heldout"]["pictures"] == 110 + len(splits.val)
    assert report["copies"][0]["original"] in {f"{name}" for name in splits.train.names}


def test_diffusers_and_peft_read_the_files_and_give_the_same_outputs(trained: Path, published: Path) -> None:
    base = model.load(published, None, CPU)
    ours = adapters.load(trained, base)
    x, t = rng.normal((4, 8, 8), 0, torch.arange(2)), torch.tensor([10.0, 700.0])
    text = base.conditions(["a cat", "dogs"])["tok:text"]
    with torch.no_grad():
        wanted = ours.denoiser.net(x, t, {"tok:text": text})
        plain = base.net(x, t, {"tok:text": text})
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(published, local_files_only=True)
        pipeline.load_lora_weights(trained)
        by_diffusers = pipeline.unet(x, t, text).sample
        unet = diffusers.UNet2DConditionModel.from_pretrained(published / "unet")
        by_peft = peft.PeftModel.from_pretrained(unet, trained)(x, t, text).sample
    assert (wanted - plain).abs().max() > 1e-3
    assert torch.allclose(wanted, by_diffusers, atol=1e-5)
    assert torch.allclose(wanted, by_peft, atol=1e-5)


def test_scale_zero_is_the_base_bit_for_bit_and_merging_changes_nothing(
    trained: Path, published: Path, tmp_path: Path
) -> None:
    base = model.load(published, None, CPU)
    cond, ids = base.conditions(["a cat"]), torch.arange(1)
    plain = base.draw(cond, HOW, 0, ids)
    assert torch.equal(adapters.load(trained, base, 0.0).draw(cond, HOW, 0, ids), plain)
    changed = adapters.load(trained, base, 0.7).draw(cond, HOW, 0, ids)
    assert torch.equal(base.draw(cond, HOW, 0, ids), plain) and not torch.equal(changed, plain)
    out = adapters.merged(trained, base, tmp_path / "merged", 0.7)
    merged = model.load(out, None, CPU).draw(cond, HOW, 0, ids)
    assert torch.allclose(merged, changed, atol=1e-4)
    diffusers.StableDiffusionPipeline.from_pretrained(out, local_files_only=True)


def test_killed_and_resumed_it_has_the_same_bits(trained: Path, published: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path, published)
    with interrupted_at(16):
        train(root)
    again = train(root)
    for name in ("model.safetensors", "pytorch_lora_weights.safetensors", "training.json"):
        assert (again / name).read_bytes() == (trained / name).read_bytes(), name


def test_the_shards_of_the_workspace_are_learned(published: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path, published, pictures=None, images=16, mirror=False, size=64)
    write_shards(root, train=12, val=6)
    keys = json.loads((train(root) / "trained_on.json").read_text())["keys"]
    assert len(keys) == 12


def test_half_of_a_dreambooth_training_are_pictures_that_the_base_drew(published: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path, published)
    path = root / "params.yaml"
    prior = {"prompt": "a photo of a cat", "count": 5, "weight": 3.0, "steps": 2}
    section = load(path).adapt.lora.model_dump() | {"images": 16, "prior": prior}
    write_params(
        root, base={"source": str(published), "sha256": folder.digest(published)}, adapt={"dreambooth": section}
    )
    stage.run(load(path), root, "dreambooth")
    drawn = sorted((root / ".contrapposto/prior").rglob("*.png"))
    assert len(drawn) == 5 and drawn[0].with_suffix(".txt").read_text() == "a photo of a cat"
    keys = json.loads((root / "artifacts/dreambooth/trained_on.json").read_text())["keys"]
    assert len(keys) == 6  # the class is not what it was trained on

    config = load(path).adapt.dreambooth
    base, splits = model.load(published, None, CPU), pictures.load(root, config, 64)
    class_pictures = pictures.from_folder(drawn[0].parent, "", 64)
    data = stage.Embedded(root, base, base.conditions, splits, True, "0" * 64, class_pictures, 3.0)
    x0, cond = data.train(torch.arange(24))
    assert len(data.keys) == 24  # 6 pictures, their mirror images, and as many of the class
    assert torch.equal(x0[12:17], data.latents[12:]) and torch.equal(x0[17], x0[12])
    assert torch.equal(cond["weight:x"].flatten(), torch.tensor([1.0] * 12 + [3.0] * 12))
    assert torch.equal(cond["tok:text"][12], base.conditions(["a photo of a cat"])["tok:text"][0])
    assert len(data.evaluated()["train"]) == 6


def test_a_learned_word_is_read_by_diffusers_and_the_model_stays_as_it_is(published: Path, tmp_path: Path) -> None:
    root = workspace(tmp_path, published)
    section = {
        "pictures": "photos", "template": "a photo of <sks>", "word": "<sks>", "vectors": 2, "initial": "c", "images": 32,
        "checkpoint_images": 16, "learning_rate": 0.05, "caption_dropout": 0.1, "val": 0.3, "certificate": None,
    }  # fmt: skip
    source = {"source": str(published), "sha256": folder.digest(published)}
    write_params(root, base=source, adapt={"textual_inversion": section})
    stage.run(load(root / "params.yaml"), root, "textual_inversion")
    out = root / "artifacts/textual_inversion"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(published, local_files_only=True)
    start = (
        pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer.convert_tokens_to_ids("c</w>")].clone()
    )
    pipeline.load_textual_inversion(out / "learned_embeds.safetensors")
    pipeline.set_progress_bar_config(disable=True)
    numbers = pipeline.tokenizer.convert_tokens_to_ids(["<sks>", "<sks>_1"])
    learned = pipeline.text_encoder.get_input_embeddings().weight[numbers]
    assert all((vector - start).abs().max() > 0.01 for vector in learned)

    base = model.load(published, None, CPU)
    ours = inversion.load(out, base)
    drawn = ours.latents(ours.conditions(["a <sks> on a boat"]), HOW, 3, torch.arange(1), 64)
    noise = rng.normal(ours.shape(64), rng.fold(3, 0), torch.arange(1))
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    theirs = pipeline(
        "a <sks> on a boat", height=64, width=64, num_inference_steps=4, guidance_scale=2.0, latents=noise,
        output_type="latent",
    ).images  # fmt: skip
    assert (drawn - theirs).abs().max() < 1e-4

    # What was trained sees the prompt as a pipeline does that has read the file.
    word = inversion.Inversion(base, "<sks>", 2, None, 0)
    word.module.vectors.data = learned.detach().clone()
    text = word.module.embedded(word.conditions(["a <sks> on a boat"])["ids:text"])
    assert torch.allclose(text, ours.conditions(["a <sks> on a boat"])["tok:text"], atol=1e-5)
    with pytest.raises(UserError):
        word.conditions(["a photo of a cat"])
    with pytest.raises(UserError):
        inversion.Inversion(base, "<sks>", 1, "catdog", 0)


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_other_kinds_of_models_learn_and_diffusers_reads_them(kind: str, tmp_path: Path) -> None:
    source = tiny_pipelines.stored(tmp_path / kind, kind)
    out = train(workspace(tmp_path / "workspace", source, images=16, mirror=False))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(source, local_files_only=True)
    pipeline.load_lora_weights(out)
    pipeline.set_progress_bar_config(disable=True)
    base = model.load(source, None, CPU)
    ours = adapters.load(out, base)
    how = SamplingChoices(sampler="euler", steps=4, guidance=2.0)
    drawn = ours.latents(ours.conditions(["a cat"]), how, 3, torch.arange(1), 64, ours.conditions(["blue"]))
    start = rng.normal(ours.shape(64), rng.fold(3, 0), torch.arange(1))
    theirs = pipeline(
        "a cat", negative_prompt="blue", height=64, width=64, num_inference_steps=4, guidance_scale=2.0, latents=start,
        output_type="latent",
    ).images  # fmt: skip
    assert (drawn - theirs).abs().max() < 1e-3


def test_the_loss_curve_is_that_of_the_training_loop_of_diffusers(published: Path) -> None:
    """50 steps of the loop of `train_text_to_image_lora.py` (peft's adapter, DDPM's noise, AdamW) from the same noise."""
    base = model.load(published, None, CPU)
    latents = rng.normal((4, 8, 8), 5, torch.arange(6))
    text = base.conditions([f"picture {i}" for i in range(6)])["tok:text"]
    config = TrainConfig(images=200, batch=4, learning_rate=1e-3, grad_clip=1.0, weight_decay=0.01)
    ours, adapter = adapters.adapted(base, 4, 4.0)
    data = lambda i: (latents[i], {"tok:text": text[i]})  # noqa: E731
    trainer = Trainer(ours.denoiser, base.recipe, config, data, n=6)

    unet = copy.deepcopy(diffusers.UNet2DConditionModel.from_pretrained(published / "unet"))
    unet.requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights="gaussian"))
    peft.set_peft_model_state_dict(unet, adapter.tensors())
    scheduler = diffusers.DDPMScheduler.from_pretrained(published / "scheduler")
    trained = [p for p in unet.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == sum(p.numel() for p in adapter.parameters())
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01, eps=1e-8)
    curves: list[tuple[float, float]] = []
    for step in range(50):
        ids = torch.arange(4 * step, 4 * step + 4)
        examples = trainer._examples(ids)
        u = base.recipe.draw(rng.fold(0, Stream.LEVEL), 4 * step, 4)
        timesteps = (u * 1000).floor().long()
        noise = rng.normal((4, 8, 8), rng.fold(0, Stream.NOISE), ids)
        noisy = scheduler.add_noise(latents[examples], noise, timesteps)
        prediction = unet(noisy, timesteps, text[examples], return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curves.append((trainer.step().loss, float(loss.detach())))
    assert max(abs(a - b) for a, b in curves) < 1e-4
    after = peft.get_peft_model_state_dict(unet)
    assert max(float((after[name] - value).abs().max()) for name, value in adapter.tensors().items()) < 1e-3
    assert any(float(value.abs().max()) > 1e-3 for name, value in adapter.tensors().items() if "lora_B" in name)
