"""Small workspaces that the tests make themselves: parameters with tiny nets, and shards of simple figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from tasks.common.images import encode_png
from tasks.config.params import Params
from tasks.dataset import shards
from tests.support.project import PROJECT, copy_project

TINY_MODEL = {
    "width": 16, "depth": 1, "heads": 2, "images": 2048, "batch": 32, "learning_rate": 3e-3, "warmup_images": 64,
    "ema_halflife_images": 256, "checkpoint_images": 256, "cooldown_images": 0, "optimiser": "adamw",
}  # fmt: skip

# From 16 to 32 pixels.
TINY_UPSCALER = {
    "size": 32, "crop": 16, "crops": 8, "preset": None, "width": 16, "depth": 1, "heads": 1, "images": 1024, "batch": 32,
    "warmup_images": 64, "cooldown_images": 512, "ema_halflife_images": 64, "checkpoint_images": 512,
    "learning_rate": 3e-3,
}  # fmt: skip

TINY_CODEC = {
    "kind": "kl",
    "factor": 4,
    "latents": 8,
    "widths": [8, 16],
    "images": 256,
    "checkpoint_images": 256,
    "copies": 0,
}


def write_params(root: Path, **changes: Any) -> Path:
    """`params.yaml` with tiny nets in `root`; changes by dotted key with `__` for the dot. Returns the file."""
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load((PROJECT / "params.yaml").read_text())
    for model in ("poses", "pictures"):
        params[model].update(TINY_MODEL)
        params["sample"][model].update(count=24, steps=4, batch=16)
    params["sample"]["train_conditions"] = 8
    params["pictures"].update(size=16, patch=4, body_weight=0.0, copies=0)
    params["codec"] = {"kind": "none"}
    params["shard"].update(size=16)
    for key, value in changes.items():
        *sections, last = key.split("__")
        node = params
        for section in sections:
            node = node[section]
        node[last] = value
    root.mkdir(parents=True, exist_ok=True)
    path = root / "params.yaml"
    with path.open("w") as file:
        yaml.dump(json.loads(json.dumps(params)), file)
    return path


def one_step_workspace(root: Path, data: Path, **changes: Any) -> Path:
    """`root` with the shards in `data`, and parameters for trainings of one step and a few samples; changes as above."""
    one_step = {"images": 32, "warmup_images": 0, "checkpoint_images": 32}
    given = {f"{model}__{key}": value for model in ("poses", "pictures") for key, value in one_step.items()}
    store = f"sqlite:///{data.parent}/mlflow.db"  # one for all tests, since making it takes seconds
    counts = {"sample__poses__count": 4, "sample__pictures__count": 4, "tracking__store": store}
    write_params(root, **{**given, **counts, **changes})
    (root / "data").symlink_to(data)
    return root


def small_project(root: Path, **changes: Any) -> Path:
    """A copy of the project with few pictures and tiny nets; changes as in `write_params`."""
    copy_project(root)
    write_params(
        root, **{"mannequin__count": 60, "mannequin__size": 128, "codec": TINY_CODEC, "pictures__patch": 1, **changes}
    )
    return root


def figure(rng: np.random.Generator, category: int) -> np.ndarray:
    """A pose float32 `[33, 3]`: a fixed standing figure bent by a few random numbers, more in the second category."""
    pose = np.zeros((33, 3))
    pose[:11] = [0, -1.4, -0.1] + 0.1 * np.sin(np.arange(33).reshape(11, 3))
    side = np.where(np.arange(33) % 2 == 1, 1.0, -1.0)
    pose[11:, 0] = side[11:] * 0.3
    pose[13:15, 1], pose[15:23, 1], pose[25:27, 1], pose[27:, 1] = -0.5, -0.1, 0.9, 1.8
    pose[23:25] = [[0.2, 0, 0], [-0.2, 0, 0]]
    pose[11:13] = [[0.3, -1, 0], [-0.3, -1, 0]]
    bend = rng.normal(size=(4, 3)) * (0.2 + 0.2 * category)
    pose[13:23:2] += bend[0]
    pose[14:23:2] += bend[1]
    pose[25::2] += bend[2]
    pose[26::2] += bend[3]
    return pose.astype(np.float32)


def picture(pose: np.ndarray, size: int) -> np.ndarray:
    """A coarse picture of a pose, uint8 `[size, size, 3]`: a bright blob for every joint."""
    grid = (np.arange(size) + 0.5) / size * 5 - 2.5
    distance = (grid[None, :, None] - pose[:, 0]) ** 2 + (grid[:, None, None] - pose[:, 1]) ** 2
    light = np.exp(-distance / 0.05).max(axis=-1)
    return (light[..., None] * np.array([255, 200, 120])).astype(np.uint8)


BAND = 0.25  # of the side


def write_shards(
    root: Path,
    train: int = 60,
    val: int = 20,
    test: int = 10,
    bands: bool = False,
    size: int = 16,
    captions: bool = False,
) -> None:
    """`data/shards` of figures in two categories, in pictures of `size` pixels.

    With `bands`, the top of every second picture is a white band of padding. With `captions`, every third picture has one, and
    there are embeddings of 3 tokens.
    """

    def rows(split: str, count: int, seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
        rng = np.random.default_rng(seed)
        for i in range(count):
            pose = figure(rng, i % 2)
            key = f"{seed:04x}{i:012x}"
            meta: dict[str, Any] = {
                "category": ("calm", "wild")[i % 2],
                "group": key,
                "source": f"{key}.png",
                "split": split,
                "side": size,
            }
            pixels = picture(pose, size)
            if bands and i % 4 < 2:
                meta["real"] = [0.0, BAND, 1.0, 1.0]
                pixels[: round(size * BAND)] = 255
            if captions and i % 3 == 0:
                meta["caption"] = "somebody"
            yield (
                key,
                {
                    "png": encode_png(pixels),
                    "pose.npy": shards.encode_pose(pose),
                    "json": shards.encode_json(meta),
                },
            )

    counts = {"train": train, "val": val, "test": test}
    splits = {split: rows(split, count, seed) for seed, (split, count) in enumerate(counts.items())}
    about = {"categories": ["calm", "wild"], "parts": ["figures"], "size": size, "margin": 0.08}
    text = None
    if captions:
        known = ["a calm one", "a wild one", "somebody"]
        encoder = {"source": "encoder", "sha256": "0" * 64, "length": 3, "template": "a {category} one"}
        about["text"] = {**encoder, "width": 5, "captions": known}
        text = np.random.default_rng(7).normal(size=(len(known), 3, 5)).astype(np.float32)
    shards.write(root / "data/shards", splits, 50, about, text)


def write_untrained(root: Path, params: Params, name: str, shift: float = 0.0, images: int = 0) -> None:
    """`artifacts/<name>`: a model of the shards in `root` that is not trained: it draws what has their mean, moved by
    `shift`, and their spread. `images` is a label that makes another file of the same model."""
    from tasks import paths
    from tasks.dataset.shards import ShardDataset
    from tasks.models import inputs, modality, model_file

    config = modality.config_of(params, name)
    categories = ["calm", "wild"]
    examples = inputs.examples(ShardDataset(root / "data/shards", "train"), config, categories, mirrored=False)
    codec = inputs.fit_codec(examples.x0 + shift, per_coordinate=name == "poses")
    model = modality.build(name, config, categories, codec, 0.08)
    weights = dict(model.denoiser.state_dict())
    model_file.save(paths.model_folder(root, name), model, weights, {"digest": "0", "images": images})


def write_upscaler(root: Path, params: Params) -> None:
    """`artifacts/upscaler`: a model that is not trained."""
    import torch

    from diffusion_core.codecs import Affine
    from tasks import paths
    from tasks.models import modality, model_file

    model = modality.build(paths.UPSCALER, params.upscaler, [], Affine(torch.zeros(()), torch.ones(())), 0.08)
    folder = paths.model_folder(root, paths.UPSCALER)
    folder.mkdir(parents=True, exist_ok=True)
    model_file.save(folder, model, dict(model.denoiser.state_dict()), {"digest": "upscaler", "images": 0})


def write_awake(root: Path, name: str, categories: Sequence[str] = ("calm", "wild")) -> None:
    """An untrained model whose last layers are not zero, so that noise and conditions matter."""
    import torch

    from diffusion_core.codecs import Affine
    from tasks.config.params import load
    from tasks.models import modality, model_file

    params = load(root / "params.yaml")
    shape = (33, 3) if name == "poses" else ()
    model = modality.build(
        name, modality.config_of(params, name), list(categories), Affine(torch.zeros(shape), torch.ones(())), 0.08
    )
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: value if value.any() else torch.randn(value.shape, generator=generator) * 0.2
        for key, value in model.denoiser.named_parameters()
    }
    (root / "artifacts" / name).mkdir(parents=True)
    model_file.save(root / "artifacts" / name, model, {k: v.detach() for k, v in weights.items()}, {"digest": "none"})
