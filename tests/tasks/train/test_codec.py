"""The codec: trained and resumed like a model, closed form where it can be, and carried inside the picture model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusion_core.codecs import Affine, Latent
from diffusion_core.training import reconstruction
from tasks import paths
from tasks.config.params import Params, load
from tasks.models import codec, conditioning, inputs, model_file
from tasks.train import data, stage
from tests.support.workspaces import write_params, write_shards

CODEC = {
    "kind": "kl", "factor": 4, "latents": 8, "widths": [8, 16], "images": 384, "batch": 32, "warmup_images": 64,
    "cooldown_images": 192, "ema_halflife_images": 64, "checkpoint_images": 128, "copies": 1, "learning_rate": 2e-3,
    "noise": 0.02,
}  # fmt: skip
MODEL = {"pictures__images": 64, "pictures__patch": 1, "pictures__copies": 1, "pictures__body_weight": 2.0}


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what training sets


def workspace(root: Path, **changes: object) -> Params:
    write_params(root, **{"codec": {**CODEC, **changes}, **MODEL})
    write_shards(root)
    return load(root / paths.PARAMS)


def stored(root: Path, name: str) -> bytes:
    return (paths.model_folder(root, name) / paths.MODEL_FILE).read_bytes()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    params = workspace(root)
    stage.run(params, root, "codec")
    stage.run(params, root, "pictures")
    return root


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_stopped_and_run_again_gives_the_same_bits(kind: str, trained: Path, tmp_path: Path) -> None:
    whole = trained
    if kind == "vq":
        whole = tmp_path / "whole"
        stage.run(workspace(whole, kind=kind, codes=16), whole, "codec")
    root = tmp_path / "stopped"
    params = workspace(root, kind=kind, codes=16) if kind == "vq" else workspace(root)
    stage.run(params, root, "codec")
    for path in (root / paths.TRAINING / "codec").glob("*/checkpoint-*"):
        if int(path.stem.split("-")[1]) > 256:
            path.unlink()
    (paths.model_folder(root, "codec") / paths.MODEL_FILE).unlink()
    stage.run(params, root, "codec")
    assert stored(root, "codec") == stored(whole, "codec")


def test_training_improves_on_principal_components(trained: Path, tmp_path: Path) -> None:
    params = workspace(tmp_path, kind="pca")
    stage.run(params, tmp_path, "codec")
    pictures = inputs.usable(tmp_path, "val", params.pictures)
    x = inputs.examples(pictures, params.pictures, ["calm", "wild"], mirrored=False).x0
    quality = {}
    for root in (trained, tmp_path):
        latent = codec.load(paths.model_folder(root, "codec") / paths.MODEL_FILE)
        assert latent is not None
        quality[root] = float(reconstruction.error(latent.decode(latent.encode(x)), x).mean())
    assert quality[trained] < quality[tmp_path]


def test_the_codec_is_inside_the_picture_model(trained: Path) -> None:
    model = model_file.load(paths.model_folder(trained, "pictures"), torch.device("cpu"))
    alone = codec.load(paths.model_folder(trained, "codec") / paths.MODEL_FILE)
    assert isinstance(model.codec, Latent) and alone is not None
    assert model.shape == (8, 4, 4)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(model.codec.encode(x), alone.encode(x))
    assert model.codec.decode(model.codec.encode(x)).shape == x.shape


def test_latents_have_the_networks_standard_deviation(trained: Path) -> None:
    params = load(trained / paths.PARAMS)
    latent = codec.load(paths.model_folder(trained, "codec") / paths.MODEL_FILE)
    assert latent is not None
    dataset = data.ExampleDataset(
        inputs.usable(trained, "train", params.pictures), params.pictures, ["calm", "wild"], 4
    )
    encoder = data.Encoder(latent, trained / paths.LATENTS, torch.device("cpu"))
    z = data.in_memory(dataset, False, False, encoder).subset.x0
    assert z.square().mean().sqrt().item() == pytest.approx(0.5, abs=0.05)


def test_a_copy_is_moved_with_its_map() -> None:
    """Picture and map are the same here, so they must be the same after any jitter; the first rows stay as they are."""
    x = torch.rand(6, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    moved, cond = conditioning.jittered(x, {"map:pose": x.clone()}, 3, torch.arange(6))
    assert torch.equal(moved, cond["map:pose"]) and list(cond) == ["map:pose"]
    assert (moved - x).abs().mean() > 0.05
    again, _ = conditioning.jittered(x[2:3], {}, 3, torch.tensor([2]))
    torch.testing.assert_close(again, moved[2:3])


def test_weights_are_larger_on_the_body_and_have_mean_one() -> None:
    maps = torch.zeros(1, 6, 8, 8)
    maps[0, 2, 3, 3] = 1
    weight = conditioning.body_weight(maps, 3.0)
    assert weight.mean().item() == pytest.approx(1)
    assert (weight[0, 0, 3, 3] / weight[0, 0, 0, 0]).item() == pytest.approx(4)


def test_none_leaves_pixels(tmp_path: Path) -> None:
    write_params(tmp_path, pictures__images=64)
    write_shards(tmp_path)
    params = load(tmp_path / paths.PARAMS)
    stage.run(params, tmp_path, "codec")
    assert codec.load(paths.model_folder(tmp_path, "codec") / paths.MODEL_FILE) is None
    stage.run(params, tmp_path, "pictures")
    model = model_file.load(paths.model_folder(tmp_path, "pictures"), torch.device("cpu"))
    assert isinstance(model.codec, Affine) and model.shape == (3, 16, 16)


def test_a_warm_start_keeps_the_codec_of_the_other_model(trained: Path, tmp_path: Path) -> None:
    workspace(tmp_path, seed=5)
    digest = paths.model_sha256(trained, "pictures")
    folder = tmp_path / paths.REGISTERED_MODELS / digest
    folder.mkdir(parents=True)
    (folder / paths.MODEL_FILE).write_bytes(stored(trained, "pictures"))
    write_params(tmp_path, **{"codec": {**CODEC, "seed": 5}, **MODEL, "pictures__start": digest})
    stage.run(load(tmp_path / paths.PARAMS), tmp_path, "codec")
    adopted, other = (codec.load(paths.model_folder(r, "codec") / paths.MODEL_FILE) for r in (tmp_path, trained))
    assert adopted is not None and other is not None
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(adopted.encode(x), other.encode(x))
