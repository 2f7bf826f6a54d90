"""Padding is not learned: it has no weight, the network is told where it is, and samples have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_core import conditioning as conds
from diffusion_core.conditioning import PADDING, WEIGHT
from tasks import paths
from tasks.config.params import load
from tasks.config.sampling import SamplingChoices
from tasks.dataset import shards
from tasks.dataset.shards import ShardDataset
from tasks.models import codec, conditioning, inputs, modality, model_file, sampler
from tasks.train import stage
from tasks.train.data import ExampleDataset
from tests.support.workspaces import BAND, write_params, write_shards

ROWS = round(16 * BAND)


def _workspace(root: Path, marked: bool, **changes: Any) -> None:
    """Shards with white bands, which are marked as padding or, as a control, are not."""
    write_params(root, **changes)
    write_shards(root, train=96, bands=True)
    if not marked:
        parts = {split: ShardDataset(root / "data/shards", split) for split in ("train", "val", "test")}
        about = parts["train"].about
        samples = {
            split: [
                (key, {"png": part.read(i, "png"), "pose.npy": part.read(i, "pose.npy"), "json": _unmarked(part, i)})
                for i, key in enumerate(part.keys)
            ]
            for split, part in parts.items()
        }
        shards.write(root / "data/shards", samples, 50, about)


def _unmarked(part: ShardDataset, i: int) -> bytes:
    return json.dumps({key: value for key, value in part.meta(i).items() if key != "real"}).encode()


def _bands(pictures: torch.Tensor) -> float:
    """The share of pictures whose top rows are bright."""
    return float((pictures[:, :, : ROWS - 1].mean((1, 2, 3)) > 0).float().mean())


@pytest.mark.parametrize(
    ("kind", "control"),
    [("none", False), *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in ("none", "kl"))],
)
def test_samples_have_no_bands(kind: str, control: bool, tmp_path: Path) -> None:
    """Half of the training pictures have a strong band. In the control it is not marked, and samples have it as well."""
    images = 4800 if control else 1280
    model = {"width": 48, "depth": 2, "heads": 2, "images": images, "batch": 64, "patch": 4, "checkpoint_images": images,
             "cooldown_images": images // 2, "optimiser": "muon", "mirror": False}  # fmt: skip
    changes: dict[str, Any] = {f"pictures__{key}": value for key, value in model.items()}
    if kind == "kl":
        changes["pictures__patch"] = 1
        changes["codec"] = {"kind": "kl", "factor": 4, "latents": 12, "widths": [8, 16], "images": 1280, "copies": 0,
                            "checkpoint_images": 1280, "learning_rate": 2e-3, "warmup_images": 64}  # fmt: skip
    share = {}
    for marked in (True, False) if control else (True,):
        root = tmp_path / str(marked)
        _workspace(root, marked, **changes)
        params = load(root / "params.yaml")
        stage.run(params, root, "codec")
        stage.run(params, root, "pictures")
        model_ = model_file.load(paths.model_folder(root, "pictures"), torch.device("cpu"))
        assert model_.padded == marked
        poses = ShardDataset(root / "data/shards", "val").poses()
        cond = model_.conditions(["calm", "wild"] * (len(poses) // 2), poses)
        share[marked] = _bands(sampler.draw(model_, cond, SamplingChoices(steps=12), 0, torch.arange(len(poses))))
    assert share[True] == 0
    assert not control or share[False] >= 0.25


def test_padding_has_no_weight_and_is_never_withheld(tmp_path: Path) -> None:
    _workspace(tmp_path, True, pictures__copies=1, pictures__body_weight=2.0)
    config = load(tmp_path / "params.yaml").pictures
    split = inputs.usable(tmp_path, "train", config)
    dataset = ExampleDataset(split, config, ["calm", "wild"])
    assert dataset.padded
    examples = dataset.read_all()
    padding, weight = examples.cond[PADDING], examples.cond[WEIGHT]
    assert torch.equal(padding[0, 0, :, 0], (torch.arange(16) <= ROWS).float())
    assert not weight[padding > 0].any() and (weight[padding == 0] > 0).all()
    copies = examples.cond[PADDING][dataset.uncopied :]
    assert copies[2:4].any(), "the edges that a shift shows are padding too"
    moved = examples.x0[dataset.uncopied :]
    assert (moved[copies.expand_as(moved) == 0] < 0.99).float().mean() > 0.95, "the band moves with its map"
    index = torch.tensor([3, 5, dataset.uncopied + 1])
    torch.testing.assert_close(dataset.read(index).cond[PADDING], examples.cond[PADDING][index])
    kept = conds.drop(conds.without(examples.cond), 1.0, 0, torch.arange(len(padding)))
    assert PADDING in kept and f"keep:{PADDING}" not in kept
    latents = conditioning.at_latents({PADDING: padding, WEIGHT: weight}, 8)
    assert latents[PADDING].shape == (len(padding), 1, 2, 2)
    assert latents[PADDING][0, 0, 0, 0].item() == pytest.approx((ROWS + 1) / 8)


def test_without_padding_nothing_changes(tmp_path: Path) -> None:
    write_params(tmp_path)
    write_shards(tmp_path)
    config = load(tmp_path / "params.yaml").pictures
    dataset = ExampleDataset(inputs.usable(tmp_path, "train", config), config, ["calm", "wild"])
    assert not dataset.padded and PADDING not in dataset.read_all().cond and WEIGHT not in dataset.read_all().cond


def test_held_out_losses_do_not_count_padding(tmp_path: Path) -> None:
    _workspace(tmp_path, True)
    config = load(tmp_path / "params.yaml").pictures
    val = inputs.usable(tmp_path, "val", config)
    built = modality.build(
        "pictures", config, ["calm", "wild"], inputs.fit_codec(torch.randn(4, 3, 16, 16), False), 0.08, padded=True
    )
    examples = built.examples(val)
    assert not examples.cond[WEIGHT][examples.cond[PADDING] > 0].any()


@pytest.mark.parametrize("net", ["patch", "unet", "edm2"])
def test_a_warm_start_with_padding_begins_as_the_same_function(net: str, tmp_path: Path) -> None:
    """New data have padding, the old model knew of none; and the other way round."""
    from tasks.train import warm_start

    write_params(tmp_path, pictures__net=net, pictures__width=32)
    config = load(tmp_path / "params.yaml").pictures
    affine = inputs.fit_codec(torch.randn(4, 3, 16, 16), False)
    build = {
        padded: modality.build("pictures", config, ["calm", "wild"], affine, 0.08, padded) for padded in (False, True)
    }
    for padded, model in build.items():
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for value in model.denoiser.parameters():
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2)
        folder = paths.model_folder(tmp_path / str(padded), "pictures")
        folder.mkdir(parents=True)
        weights = {name: value.detach() for name, value in model.denoiser.named_parameters()}
        model_file.save(folder, model, weights, {"digest": "0"})
    digest = paths.model_sha256(tmp_path / "False", "pictures")
    loaded = warm_start.weights(tmp_path / "False", digest, build[True])
    build[True].denoiser.load_state_dict(loaded, strict=False)
    x = torch.randn(2, 3, 16, 16)
    cond = {"vec:category": torch.eye(2), "map:pose": torch.rand(2, 6, 16, 16)}
    from diffusion_core.schedules import sigma_level

    level = sigma_level(torch.tensor(0.7))
    for model in build.values():
        model.denoiser.eval()
    torch.testing.assert_close(
        build[True].denoiser(x, level, cond), build[False].denoiser(x, level, cond), rtol=1e-4, atol=1e-5
    )
    other = warm_start.weights(tmp_path / "True", paths.model_sha256(tmp_path / "True", "pictures"), build[False])
    assert all(other[name].shape == value.shape for name, value in build[False].denoiser.named_parameters())


def test_a_codec_gives_padding_no_weight(tmp_path: Path) -> None:
    """Principal components of the marked pictures are those of the real patches: they cannot show a white band well."""
    quality = {}
    for marked in (True, False):
        root = tmp_path / str(marked)
        _workspace(root, marked, codec={"kind": "pca", "factor": 4, "latents": 3})
        params = load(root / "params.yaml")
        stage.run(params, root, "codec")
        latent = codec.load(paths.model_folder(root, "codec") / paths.MODEL_FILE)
        assert latent is not None
        pictures = inputs.examples(
            inputs.usable(root, "val", params.pictures), params.pictures, ["calm", "wild"], mirrored=False
        ).x0
        real = pictures[:, :, 2 * ROWS :]
        quality[marked] = (latent.decode(latent.encode(real)) - real).square().mean()
    assert quality[True] < quality[False]
