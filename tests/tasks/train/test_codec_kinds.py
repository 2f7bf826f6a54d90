"""The codec's options: a discriminator, perceptual loss, the pose for the decoder, a published autoencoder, cached latents."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diffusion_core.codecs import Latent
from tasks import paths
from tasks.common.errors import UserError
from tasks.config.params import Params, load
from tasks.config.sampling import SamplingChoices
from tasks.dataset.shards import ShardDataset
from tasks.models import codec, model_file, sampler
from tasks.train import stage
from tests.support.workspaces import write_params, write_shards

CODEC = {
    "kind": "kl", "factor": 4, "latents": 8, "widths": [8, 16], "images": 192, "batch": 32, "warmup_images": 32,
    "cooldown_images": 64, "ema_halflife_images": 64, "checkpoint_images": 64, "copies": 0, "learning_rate": 2e-3,
}  # fmt: skip
ADVERSARIAL = {"from_images": 96, "width": 8, "depth": 2}
MODEL = {"pictures__images": 64, "pictures__patch": 1, "pictures__copies": 1, "pictures__body_weight": 2.0}


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what training sets


def workspace(root: Path, **changes: Any) -> Params:
    write_params(root, **{"codec": {**CODEC, **changes}, **MODEL})
    write_shards(root)
    return load(root / paths.PARAMS)


def file_of(root: Path, name: str) -> Path:
    return paths.model_folder(root, name) / paths.MODEL_FILE


def loaded(root: Path) -> Latent:
    latent = codec.load(file_of(root, "codec"))
    assert latent is not None
    return latent


@pytest.mark.parametrize(
    ("kind", "stops"),
    [pytest.param(kind, (64, 128), marks=pytest.mark.slow) for kind in ("kl", "vq")],
)
def test_with_a_discriminator_a_stopped_training_ends_with_the_same_bits(
    kind: str, stops: tuple[int, ...], tmp_path: Path
) -> None:
    """It is stopped before or after the discriminator is switched on; the codec's file does not hold it."""
    whole = tmp_path / "whole"
    stage.run(workspace(whole, kind=kind, codes=16, adversarial=ADVERSARIAL), whole, "codec")
    for kept in stops:
        root = tmp_path / str(kept)
        params = workspace(root, kind=kind, codes=16, adversarial=ADVERSARIAL, checkpoints_kept=3)
        stage.run(params, root, "codec")
        for path in (root / paths.TRAINING / "codec").glob("*/checkpoint-*"):
            if int(path.stem.split("-")[1]) > kept:
                path.unlink()
        file_of(root, "codec").unlink()
        stage.run(params, root, "codec")
        a, b = loaded(root), loaded(whole)
        assert all(torch.equal(value, codec.tensors(b)[name]) for name, value in codec.tensors(a).items())
    assert not any("discriminator" in name for name in codec.tensors(loaded(whole)))


def test_a_decoder_that_sees_the_pose_uses_it_and_models_give_it(tmp_path: Path) -> None:
    params = workspace(tmp_path, pose=True, latents=2, images=320, checkpoint_images=320)
    stage.run(params, tmp_path, "codec")
    stage.run(params, tmp_path, "pictures")
    model = model_file.load(paths.model_folder(tmp_path, "pictures"), torch.device("cpu"))
    assert isinstance(model.codec, Latent) and model.codec.net.condition == "map:pose"
    split = ShardDataset(tmp_path / "data/shards", "val")
    examples = model.examples(split)
    z = model.codec.encode(examples.x0)
    seen, blind = model.codec.decode(z, examples.cond), model.codec.decode(z)
    assert (seen - examples.x0).square().mean() < (blind - examples.x0).square().mean()
    withheld = {**examples.cond, "keep:map:pose": torch.zeros(len(z), dtype=torch.bool)}
    assert torch.equal(model.codec.decode(z, withheld), blind)
    cond = model.conditions(["calm"] * 4, split.poses()[:4])
    other = model.conditions(["calm"] * 4, split.poses()[4:8])
    drawn = [sampler.draw(model, c, SamplingChoices(steps=2), 0, torch.arange(4)) for c in (cond, other)]
    assert not torch.allclose(*drawn)


@pytest.mark.parametrize("memory", [0.0, pytest.param(4.0, marks=pytest.mark.slow)])
def test_cached_latents_are_the_same_and_computed_once(
    memory: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory and from shards: with the file of a training before, and without, the model has the same bits."""
    params = workspace(tmp_path, kind="pca")
    stage.run(params, tmp_path, "codec")
    encode = Latent.encode
    write_params(tmp_path, **{"codec": {**CODEC, "kind": "pca"}, **MODEL, "pictures__memory_gb": memory})
    params = load(tmp_path / paths.PARAMS)
    encoded: list[int] = []

    def counted(self: Latent, x0: torch.Tensor) -> torch.Tensor:
        encoded.append(len(x0))
        return encode(self, x0)

    monkeypatch.setattr(Latent, "encode", counted)
    bits, counts = [], []
    for _ in range(2):
        for path in (tmp_path / paths.TRAINING / "pictures").rglob("*.safetensors"):
            path.unlink()
        encoded.clear()
        stage.run(params, tmp_path, "pictures")
        bits.append(file_of(tmp_path, "pictures").read_bytes())
        counts.append(sum(encoded))
    assert bits[0] == bits[1]
    assert counts[0] - counts[1] == 60 * 2 * 2, "mirror images and one copy of each"
    assert len(list((tmp_path / paths.LATENTS).glob("*"))) == 1


def _vgg(path: Path) -> dict[str, str]:
    tensors = {}
    inp = 3
    numbers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for number, width in zip(numbers, (64, 64, 128, 128, *[256] * 3, *[512] * 6), strict=True):
        tensors[f"features.{number}.weight"] = torch.randn(width, inp, 3, 3) * (2 / 9 / inp) ** 0.5
        tensors[f"features.{number}.bias"] = torch.zeros(width)
        inp = width
    save_file(tensors, path)
    return {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_perceptual_loss_reads_the_users_weights(tmp_path: Path) -> None:
    given = _vgg(tmp_path / "vgg.safetensors")
    params = workspace(tmp_path, perceptual={"vgg": given}, images=64, checkpoint_images=64)
    stage.run(params, tmp_path, "codec")
    for path in (tmp_path / paths.TRAINING / "codec").rglob("checkpoint-*"):
        assert path.stat().st_size < 5e6, "the weights of VGG are not in the checkpoints"
    wrong = workspace(tmp_path, perceptual={"vgg": {**given, "sha256": "0" * 64}})
    with pytest.raises(UserError, match="sha256 mismatch"):
        stage.run(wrong, tmp_path, "codec")
    save_file({"features.0.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    digest = hashlib.sha256((tmp_path / "other.safetensors").read_bytes()).hexdigest()
    other = workspace(tmp_path, perceptual={"vgg": {"source": "other.safetensors", "sha256": digest}})
    with pytest.raises(UserError, match=r"codec\.perceptual"):
        stage.run(other, tmp_path, "codec")


TINY = {
    "AutoencoderKL": {
        "block_out_channels": [8, 8, 8], "down_block_types": ["DownEncoderBlock2D"] * 3, "norm_num_groups": 4,
        "up_block_types": ["UpDecoderBlock2D"] * 3, "latent_channels": 4, "layers_per_block": 1,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": [8, 8, 8], "decoder_block_out_channels": [8, 8, 8], "latent_channels": 4,
        "num_encoder_blocks": [1, 1, 1], "num_decoder_blocks": [1, 1, 1],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_a_published_autoencoder_takes_the_place_of_a_trained_one(name: str, tmp_path: Path) -> None:
    """Its reconstructions are diffusers' own, and it travels inside the picture model."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = getattr(diffusers, name)(**TINY[name]).eval()
    net.save_pretrained(tmp_path / "vae")
    digest = hashlib.sha256((tmp_path / "vae/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    published = {"source": "vae", "sha256": digest}
    given = {"kind": "published", "published": published, "factor": 4, "latents": 4}
    write_params(tmp_path, **{"codec": given, **MODEL})
    write_shards(tmp_path)
    params = load(tmp_path / paths.PARAMS)
    stage.run(params, tmp_path, "codec")
    stage.run(params, tmp_path, "pictures")
    model = model_file.load(paths.model_folder(tmp_path, "pictures"), torch.device("cpu"))
    assert isinstance(model.codec, Latent) and model.shape == (4, 4, 4)
    x = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        coded = net.encode(x)
        z = coded.latent_dist.mean if name == "AutoencoderKL" else coded.latents
        expected = net.decode(z).sample
    got = model.codec.decode(model.codec.encode(x))
    assert (got - expected).abs().mean() < 0.02 * expected.abs().mean() + 1e-3, "up to bfloat16"
    wrong = {**given, "factor": 8}
    write_params(tmp_path, **{"codec": wrong, **MODEL})
    with pytest.raises(UserError, match=r"codec\.factor and codec\.latents must be 4 and 4"):
        stage.run(load(tmp_path / paths.PARAMS), tmp_path, "codec")


def test_without_diffusers_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    published = {"source": "vae", "sha256": "0" * 64}
    params = workspace(tmp_path, kind="published", published=published)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match=r"contrapposto\[foreign\]"):
        stage.run(params, tmp_path, "codec")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"kind": "pca", "adversarial": {}}, "adversarial"),
        ({"kind": "pca", "pose": True}, "pose"),
        ({"kind": "published"}, "published"),
        ({"published": {"source": "vae", "sha256": "0" * 64}}, "published"),
        ({"adversarial": {"start": 3}}, "codec.adversarial.start"),
        ({"adversarial": {}, "sharded": True}, "sharded"),
        ({"perceptual": {"vgg": None}}, "codec.perceptual.vgg"),
    ],
)
def test_what_cannot_work_is_named(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        load(write_params(tmp_path, codec={**CODEC, **changes}))
