"""The two models of a run, `poses` and `pictures`: their examples, their networks, and the file a trained one lives in.

    poses      x0 = one pose, 33 joint tokens of 3 numbers, given its category
    pictures   x0 = one picture, 3 channels, given its category and a map of its pose

`artifacts/<model>/model.safetensors` holds the averaged weights, the codec, and as JSON everything to build it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from diffusion_core import presets
from diffusion_core.cond import Cond
from diffusion_core.denoiser import Preconditioned
from diffusion_core.nets.patch_transformer import PatchTransformer
from diffusion_core.nets.pose_transformer import PoseTransformer
from diffusion_core.recipe import Recipe
from tasks import artifacts, checkpoint
from tasks.choose import evenly
from tasks.dataset.pose_map import CHANNELS, pose_map
from tasks.dataset.shards import ShardDataset
from tasks.errors import DataError
from tasks.params import Params, Pictures, Poses
from tasks.skeleton import BONES, mirror

DATA_SD = 0.5  # standard deviation of what the networks see, EDM's convention


@dataclass(frozen=True)
class Examples:
    """A split in memory: x0 `[n, *S]` in data units, and its conditions."""

    x0: Tensor
    cond: Cond

    def __len__(self) -> int:
        return len(self.x0)

    def some(self, count: int) -> Examples:
        """At most `count` of them, from all over the split."""
        rows = torch.tensor(evenly(len(self), count), dtype=torch.int64)
        return Examples(self.x0[rows], {key: value[rows] for key, value in self.cond.items()})


@dataclass(frozen=True)
class Codec:
    """Data units <-> what the network sees: z = (x - mean) / scale, so that z has the standard deviation DATA_SD."""

    mean: Tensor  # broadcasts against one example
    scale: Tensor  # []

    @classmethod
    def fit(cls, x0: Tensor, per_coordinate: bool) -> Codec:
        """From examples `[n, *S]`: one mean a coordinate, or one for all; always one scale, so that shapes are kept."""
        mean = x0.mean(0) if per_coordinate else x0.mean()
        spread = (x0 - mean).square().mean().sqrt()
        if not spread > 0:
            raise DataError("All training examples are the same: there is nothing to learn.")
        return cls(mean, spread / DATA_SD)

    def encode(self, x0: Tensor) -> Tensor:
        """Data units to network units."""
        return (x0 - self.mean.to(x0.device)) / self.scale.to(x0.device)

    def decode(self, z: Tensor) -> Tensor:
        """Network units to data units."""
        return z * self.scale.to(z.device) + self.mean.to(z.device)


def category_vector(names: list[str], categories: list[str]) -> Tensor:
    """One-hot `[n, len(categories)]` float32."""
    index = torch.tensor([categories.index(name) for name in names], dtype=torch.int64)
    return one_hot(index, len(categories)).float()


def _pictures(dataset: ShardDataset, size: int) -> Tensor:
    return torch.from_numpy(dataset.pictures(size)).permute(0, 3, 1, 2).float() / 127.5 - 1


def examples(dataset: ShardDataset, config: Poses | Pictures, categories: list[str], mirrored: bool) -> Examples:
    """The examples of a split; with `mirrored`, every one is followed (n places later) by its mirror image.

    A mirrored person's left is its right: landmarks change sign and names, the picture is flipped.
    """
    poses = dataset.pose()
    cond: Cond = {"vec:category": category_vector([meta["category"] for meta in dataset.metas()], categories)}
    if isinstance(config, Pictures):
        x0 = _pictures(dataset, config.size)
        maps = [pose_map(p, config.size, dataset.about["margin"]) for p in (poses, mirror(poses))]
        cond["map:pose"] = maps[0]
        flipped, flipped_cond = x0.flip(-1), {**cond, "map:pose": maps[1]}
    else:
        x0 = torch.from_numpy(poses)
        flipped, flipped_cond = torch.from_numpy(mirror(poses)), cond
    if not mirrored:
        return Examples(x0, cond)
    return Examples(torch.cat([x0, flipped]), {key: torch.cat([cond[key], flipped_cond[key]]) for key in cond})


@dataclass(frozen=True)
class Model:
    """A model that can denoise and sample."""

    name: str
    config: Poses | Pictures
    categories: list[str]
    denoiser: Preconditioned
    recipe: Recipe
    codec: Codec
    margin: float  # around a person in its square, as the pictures were cut
    meta: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return (3, self.config.size, self.config.size) if isinstance(self.config, Pictures) else (33, 3)


def network(config: Poses | Pictures, categories: int) -> nn.Module:
    """The untrained network of a model, initialised from its seed."""
    torch.manual_seed(config.seed)
    if isinstance(config, Pictures):
        conds = {"vec:category": categories, "map:pose": CHANNELS}
        return PatchTransformer(
            config.size,
            config.patch,
            width=config.width,
            depth=config.depth,
            heads=config.heads,
            dropout=config.dropout,
            conds=conds,
        )
    return PoseTransformer(
        33,
        BONES,
        width=config.width,
        depth=config.depth,
        heads=config.heads,
        dropout=config.dropout,
        conds={"vec:category": categories},
    )


def build(name: str, config: Poses | Pictures, categories: list[str], codec: Codec, margin: float) -> Model:
    """An untrained model."""
    recipe = presets.edm(sd=DATA_SD)
    denoiser = recipe.denoiser(network(config, len(categories)))
    return Model(name, config, categories, denoiser, recipe, codec, margin, {})


def save(folder: Path, model: Model, weights: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write the model with these (averaged) weights into a folder."""
    about = {
        "model": model.name,
        "config": model.config.model_dump(),
        "categories": model.categories,
        "margin": model.margin,
        **meta,
    }
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    codec = {"codec.mean": model.codec.mean, "codec.scale": model.codec.scale}
    checkpoint.save(folder / artifacts.FILE, tensors | codec, about)


def load(folder: Path, device: torch.device) -> Model:
    """The trained model in a folder, in evaluation mode; DataError if the file is missing or damaged."""
    tensors, meta = checkpoint.load(folder / artifacts.FILE)
    kinds: dict[str, Callable[..., Poses | Pictures]] = {"poses": Poses, "pictures": Pictures}
    config = kinds[meta["model"]](**meta["config"])
    codec = Codec(tensors["codec.mean"], tensors["codec.scale"])
    model = build(meta["model"], config, meta["categories"], codec, meta["margin"])
    weights = {key.removeprefix("weights."): t for key, t in tensors.items() if key.startswith("weights.")}
    model.denoiser.load_state_dict(weights, strict=False)
    model.denoiser.to(device).eval().requires_grad_(False)
    return Model(model.name, config, model.categories, model.denoiser, model.recipe, codec, model.margin, meta)


def config_of(params: Params, name: str) -> Poses | Pictures:
    """A model's section of the parameters."""
    return params.pictures if name == "pictures" else params.poses


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
