"""The upscaler: trained and resumed like a model, told how noisy the smaller picture is, and part of every picture after it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_core.codecs import Affine
from diffusion_core.conditioning import LOW
from diffusion_core.schedules import sigma_level
from tasks import paths
from tasks.common import files
from tasks.common.errors import DataError, UserError
from tasks.config.params import Params, Upscaling, load
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import pose_accuracy, upscaler_quality
from tasks.models import modality, model_file, upscaler
from tasks.models.conditioning import LOW_LEVEL, SIZE
from tasks.models.upscaler import CropDataset
from tasks.train import upscaler_stage
from tests.support.project import PROJECT
from tests.support.workspaces import TINY_UPSCALER, write_params, write_shards


def workspace(root: Path, **changes: Any) -> Params:
    write_params(root, shard__size=32, upscaler={**TINY_UPSCALER, **changes})
    write_shards(root, size=32)
    return load(root / paths.PARAMS)


def stored(root: Path) -> bytes:
    return (paths.model_folder(root, paths.UPSCALER) / paths.MODEL_FILE).read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what training sets
        upscaler_stage.run(workspace(root), root)
    return root


@pytest.fixture
def model(trained: Path) -> modality.Model:
    return model_file.load(paths.model_folder(trained, paths.UPSCALER), torch.device("cpu"))


def test_stopped_and_run_again_gives_the_same_bits(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    root = tmp_path / "stopped"
    shutil.copytree(trained, root)
    for path in (root / paths.TRAINING / paths.UPSCALER).glob("*/checkpoint-*"):
        if int(path.stem.split("-")[1]) > 512:
            path.unlink()
    shutil.rmtree(root / paths.ARTIFACTS)
    upscaler_stage.run(load(root / paths.PARAMS), root)
    assert stored(root) == stored(trained)


def test_it_has_learned_to_use_the_smaller_picture(trained: Path, model: modality.Model) -> None:
    crops = CropDataset(ShardDataset(trained / paths.SHARDS, "val"), model.config, 16)
    examples = upscaler.examples(model, crops, torch.arange(40))
    other = {**examples.cond, LOW: examples.cond[LOW].roll(1, 0)}
    level = sigma_level(torch.tensor(1.0))
    noise = torch.randn(examples.x0.shape, generator=torch.Generator().manual_seed(0))
    right, wrong = (
        float((model.denoiser(examples.x0 + noise, level, cond) - examples.x0).square().mean())
        for cond in (examples.cond, other)
    )
    assert right < 0.8 * wrong


@pytest.mark.slow
def test_a_gan_is_its_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained, stored, sampled in one step and judged like the diffusion model, and keeps what the small picture says."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(pose_accuracy, "read_poses", lambda pictures, *_: np.full((len(pictures), 33, 3), np.nan))
    short = {"images": 48, "checkpoint_images": 48, "batch": 16, "warmup_images": 16, "cooldown_images": 16, "crops": 1}
    own = {"sampler": "own", "low_noise": 0.02, "tile": 32, "overlap": 8}
    upscaler_changes = {**TINY_UPSCALER, **short, "recipe": "gan"}
    write_params(tmp_path, shard__size=32, upscaler=upscaler_changes, sample__upscaler=own)
    write_shards(tmp_path, size=32)
    params = load(tmp_path / paths.PARAMS)
    upscaler_stage.run(params, tmp_path)
    held_out = ShardDataset(tmp_path / paths.SHARDS, "val").take(range(6))
    small = held_out.pictures_uint8(16)
    model = model_file.load(paths.model_folder(tmp_path, paths.UPSCALER), torch.device("cpu"))
    enlarged = upscaler.upscale(model, small, params.sample.upscaler, 0, torch.arange(6))
    again = enlarged.reshape(6, 16, 2, 16, 2, 3).mean((2, 4))
    assert enlarged.shape == (6, 32, 32, 3) and np.abs(again - small).mean() < 16
    numbers = upscaler_quality.measure(params, tmp_path, held_out, tmp_path / "sheet.png")
    assert {"upscaler.psnr", "upscaler.ssim", "upscaler.psnr_bicubic", "upscaler.found"} <= set(numbers)
    assert numbers["upscaler.psnr"] > 12 and (tmp_path / "sheet.png").is_file()
    off = params.model_copy(update={"upscaler": params.upscaler.model_copy(update={"size": None})})
    assert upscaler_quality.measure(off, tmp_path, held_out, tmp_path / "none.png") == {}


@pytest.mark.slow
def test_it_enlarges_better_than_interpolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    longer = {"images": 24000, "cooldown_images": 12000, "checkpoint_images": 24000, "crops": 64}
    upscaler_stage.run(workspace(tmp_path, **longer), tmp_path)
    held_out = ShardDataset(tmp_path / paths.SHARDS, "val")
    large, small = held_out.pictures_uint8(32), held_out.pictures_uint8(16)
    model = model_file.load(paths.model_folder(tmp_path, paths.UPSCALER), torch.device("cpu"))
    settings = Upscaling(steps=8, low_noise=0.02, tile=32, overlap=8)
    # A sample is one of the possible pictures, so its squared error is up to twice that of their mean.
    enlarged = [upscaler.upscale(model, small, settings, seed, torch.arange(len(small))) for seed in range(3)]
    bicubic = [Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC) for one in small]

    def error(pictures: np.ndarray) -> float:
        return float(np.square(pictures.astype(float) - large).mean())

    assert error(np.mean(enlarged, axis=0)) < 0.8 * error(np.stack(bicubic))


def test_a_picture_is_a_function_of_its_number_whatever_the_batch(trained: Path, model: modality.Model) -> None:
    small = ShardDataset(trained / paths.SHARDS, "val").pictures_uint8(16)[:5]
    settings = Upscaling(steps=2, tile=16, overlap=8)
    whole = upscaler.upscale(model, small, settings, 3, torch.arange(5)).astype(int)
    parts = upscaler.upscale(model, small, settings.model_copy(update={"batch": 2}), 3, torch.arange(5)).astype(int)
    alone = upscaler.upscale(model, small[4:], settings, 3, torch.tensor([4])).astype(int)
    assert np.abs(whole - parts).max() <= 2 and np.abs(whole[4:] - alone).max() <= 2  # rounding in bf16
    assert np.abs(whole - upscaler.upscale(model, small, settings, 4, torch.arange(5))).mean() > 0.1
    assert upscaler.upscale(model, small[:0], settings, 3, torch.arange(0)).shape == (0, 32, 32, 3)


def test_the_noise_on_the_smaller_picture_has_the_level_that_the_network_is_told(model: modality.Model) -> None:
    change = upscaler.transform(model.config, model.codec)
    count = 512
    x0, low = torch.zeros(count, 3, 16, 16), torch.zeros(count, 3, 8, 8)
    _, cond = change(x0, {LOW: low, SIZE: torch.full((count,), 32)}, 5, torch.arange(count))
    noise = cond[LOW] - model.codec.encode(torch.zeros(()))
    assert torch.equal(noise[:, :, ::2, ::2], noise[:, :, 1::2, 1::2])  # added before doubling
    told = cond[LOW_LEVEL][:, 0].tan()
    torch.testing.assert_close(noise.flatten(1).std(1), told, rtol=0.35, atol=1e-3)
    assert told.min() < 0.05 and 0.45 < told.max() <= 0.5
    assert torch.equal(cond[SIZE], torch.full((count, 1), -1.0))  # log2(32 / 64)


def test_crops_are_parts_of_the_picture_with_the_same_part_of_the_smaller_one(tmp_path: Path) -> None:
    params = workspace(tmp_path)
    dataset = ShardDataset(tmp_path / paths.SHARDS, "train")
    crops = CropDataset(dataset, params.upscaler, 16, memory_gb=1.0)
    assert len(crops) == 60 * 2 * 8 and len(crops.keys) == len(crops)
    picture = torch.from_numpy(dataset.picture(7, 32).copy()).permute(2, 0, 1).float() / 127.5 - 1
    small = torch.nn.functional.avg_pool2d(picture, 2)
    places = set()
    for index in (7, 67, 127, 187):
        assert crops.keys[index] == dataset.keys[7]
        read = crops.read(torch.tensor([index]))
        whole, half = (v.flip(-1) if (index // 60) % 2 else v for v in (picture, small))
        crop, low = (v.flip(-1) if (index // 60) % 2 else v for v in (read.x0[0], read.cond[LOW][0]))
        whole, half = picture, small
        (place,) = [
            (top, left)
            for top in range(0, 17, 2)
            for left in range(0, 17, 2)
            if torch.equal(whole[:, top : top + 16, left : left + 16], crop)
        ]
        top, left = (value // 2 for value in place)
        torch.testing.assert_close(half[:, top : top + 8, left : left + 8], low)
        places.add(place)
    assert len(places) > 1
    again = CropDataset(dataset, params.upscaler, 16)  # read from the shards instead of memory
    assert torch.equal(again.read(torch.tensor([187])).x0, crops.read(torch.tensor([187])).x0)


def test_padding_has_no_weight(tmp_path: Path) -> None:
    params = workspace(tmp_path)
    assert (
        "weight:x"
        not in CropDataset(ShardDataset(tmp_path / paths.SHARDS, "train"), params.upscaler, 16)
        .read(torch.arange(1))
        .cond
    )
    write_shards(tmp_path, size=32, bands=True)
    crops = CropDataset(ShardDataset(tmp_path / paths.SHARDS, "train"), params.upscaler, 16)
    read = crops.read(torch.arange(len(crops)))
    band = (read.x0 == 1).all(1, keepdim=True)
    assert band.any() and not read.cond["weight:x"][band].any()
    assert 0.8 < read.cond["weight:x"].mean() < 0.95
    change = upscaler.transform(params.upscaler, Affine(torch.zeros(()), torch.ones(())))
    _, cond = change(read.x0, read.cond, 0, torch.arange(len(crops)))
    assert torch.equal(cond["weight:x"], read.cond["weight:x"])


def test_persons_without_the_pixels_are_refused(tmp_path: Path) -> None:
    params = workspace(tmp_path)
    write_shards(tmp_path, size=30)
    dataset = ShardDataset(tmp_path / paths.SHARDS, "train")
    with pytest.raises(DataError, match="No person has 32 pixels along the side"):
        CropDataset(dataset, params.upscaler, 16)


def test_without_a_size_there_is_no_model_and_nothing_is_imported(tmp_path: Path) -> None:
    write_params(tmp_path)
    code = (
        "import sys; from pathlib import Path; from tasks.config.params import load; from tasks.train import upscaler_stage;"
        f"root = Path({str(tmp_path)!r}); upscaler_stage.run(load(root / 'params.yaml'), root); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert files.read_json(tmp_path / "artifacts/upscaler/upscaler.json") == {"size": None}
    assert paths.trained_models(tmp_path) == paths.MODELS


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"upscaler__size": 48}, "upscaler.size must be 2, 4 or 8 times pictures.size"),
        ({"upscaler__size": 64}, "upscaler.size must be at most shard.size"),
        ({"upscaler__crop": 64}, "upscaler.crop must be at most twice pictures.size"),
        ({"sample__upscaler__low_noise": 0.6}, "sample.upscaler.low_noise must be at most upscaler.low_noise"),
        ({"sample__upscaler__overlap": 80}, "overlap must be at most half a tile"),
        ({"upscaler": {**TINY_UPSCALER, "recipe": "vae"}}, "upscaler: recipe vae"),
        ({"upscaler": {**TINY_UPSCALER, "recipe": "gan"}}, "sample.upscaler.sampler unipc does not go with recipe gan"),
        ({"upscaler": {**TINY_UPSCALER, "recipe": "gan", "options": {"gan": {"sigma": 0.5}}}}, "upscaler: options"),
    ],
)
def test_impossible_cascades_are_named(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    write_params(tmp_path, **{"shard__size": 32, "upscaler": dict(TINY_UPSCALER), **changes})
    with pytest.raises(UserError, match=key):
        load(tmp_path / paths.PARAMS)


def test_a_cascade_doubles_until_the_size_is_reached() -> None:
    assert upscaler.sizes(64, 128) == [128] and upscaler.sizes(64, 512) == [128, 256, 512]


def test_the_seams_of_tiles_do_not_show(trained: Path, model: modality.Model) -> None:
    """The difference across the border of two tiles, compared with the same place when the picture is enlarged as a whole."""
    steps = np.linspace(0, 255, 32, dtype=np.uint8)
    small = np.stack([np.broadcast_to(steps[:, None], (32, 32)), np.broadcast_to(steps, (32, 32))] * 8)[
        ..., None
    ].repeat(3, 3)
    large = dataclasses.replace(model, config=model.config.model_copy(update={"size": 64}))

    def border(tile: int, overlap: int) -> np.ndarray:
        settings = Upscaling(steps=4, tile=tile, overlap=overlap)
        picture = upscaler.upscale(large, small, settings, 0, torch.arange(16)).astype(float)
        return picture[:, :, 31:33]

    whole = border(64, 0)
    blended, cut = (np.abs(np.diff(border(32, overlap) - whole, axis=2)).mean() for overlap in (16, 0))
    assert blended < 1  # of 255 levels
    assert cut > 4 * blended
