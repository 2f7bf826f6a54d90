"""What samplers are compared on: a small trained model of the asymmetric mixture, and one of the mannequin's poses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import mixture
from diffusion_core import presets
from diffusion_core.codecs import Affine
from diffusion_core.denoiser import Preconditioned
from diffusion_core.nets.mlp import MLP
from diffusion_core.recipe import Recipe
from diffusion_core.training.trainer import TrainConfig, Trainer
from tasks.common.skeleton import mirror, normalise
from tasks.metrics.frechet import frechet_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The sigma range of the timesteps, for data of standard deviation 0.5 with no structure finer than 0.03.
LOW, HIGH = 0.02, 20.0


class Subject(NamedTuple):
    """Data, a recipe and a network for them, and the distance of samples `[N, d]` to data."""

    name: str
    label: str  # of the distance
    recipe: Recipe
    net: Callable[[], MLP]
    d: int
    data: Callable[[Tensor], Tensor]  # indices [B] -> [B, d]
    n: int
    distance: Callable[[Tensor], float]


def mixture_subject(count: int) -> Subject:
    """The mixture, by the sliced Wasserstein distance of `count` samples to its law."""
    law = mixture.quantiles(count).to(DEVICE)
    return Subject(
        name="mixture",
        label="sliced Wasserstein distance to the law",
        recipe=presets.edm(mixture.SD, sigma_min=LOW, sigma_max=HIGH),
        net=lambda: MLP(2, width=128, depth=3).to(DEVICE),
        d=2,
        data=lambda index: mixture.draw(1, index),
        n=10**7,
        distance=lambda samples: mixture.w2_to_law(samples, law),
    )


def poses_subject(poses: np.ndarray) -> Subject:
    """Mannequin poses `[n, 33, 3]`, half for training and half for the Frechet distance, their mirror images with them."""
    half = len(poses) // 2
    known = np.concatenate([poses[:half], mirror(poses[:half])])
    unseen = np.concatenate([poses[half:], mirror(poses[half:])]).reshape(2 * (len(poses) - half), -1)
    flat = torch.from_numpy(known).flatten(1)
    codec = Affine.fit(flat, 0.5, per_coordinate=True)
    encoded = codec.encode(flat)
    return Subject(
        name="poses",
        label="Frechet pose distance to held-out poses",
        recipe=presets.edm(0.5, sigma_min=LOW, sigma_max=HIGH),
        net=lambda: MLP(99, width=256, depth=4).to(DEVICE),
        d=99,
        data=lambda index: encoded[index],
        n=len(encoded),
        distance=lambda samples: frechet_of(codec.decode(samples.cpu()).numpy(), unseen),
    )


def mannequin_poses(count: int, kept: Path | None) -> np.ndarray:
    """True poses of the built-in data, float32 `[count, 33, 3]`, normalised; cached in the file, if one is given."""
    if kept is not None and kept.is_file():
        poses: np.ndarray = np.load(kept, allow_pickle=False)
        return poses[:count]
    # Not above: a file of poses does not need it.
    from tasks.synthetic.stage import scene

    shown = tqdm(range(count), desc="poses", mininterval=5)
    poses = np.stack([normalise(scene(0, index, 64).joints) for index in shown]).astype(np.float32)
    if kept is not None:
        np.save(kept, poses)
    return poses


def train(
    subject: Subject, recipe: Recipe, net: MLP, steps: int, rate: float = 2e-3, batch: int = 512
) -> Preconditioned:
    """The averaged model after this many steps."""
    config = TrainConfig(
        images=steps * batch,
        batch=batch,
        learning_rate=rate,
        warmup_images=50 * batch,
        ema_halflife_images=steps * batch // 20,
    )
    trainer = Trainer(recipe.denoiser(net), recipe, config, lambda i: (subject.data(i), {}), subject.n)
    for _ in tqdm(range(steps), desc=f"train {subject.name}", mininterval=10, leave=False):
        trainer.step()
    return trainer.averaged()
