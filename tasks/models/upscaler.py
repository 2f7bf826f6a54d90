"""The upscaler: a diffusion model that doubles the size of pictures, given the smaller picture. Together they are a cascade.

Ho et al. 2021, "Cascaded Diffusion Models" (arXiv 2106.15282). One network makes all doublings and is told to which size. It is
trained on crops, works without attention, and enlarges a picture tile by tile, so that its memory does not grow with the size.

Noise is added to the smaller picture (noise-conditioning augmentation), in training of a random level, in sampling of a fixed
one, and the network is told the level: the smaller pictures of a sample have errors that those of a training picture have not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import Dataset
from tqdm import tqdm

from diffusion_core import rng
from diffusion_core.codecs import Affine, Latent
from diffusion_core.conditioning import LOW, WEIGHT, Cond
from diffusion_core.rng import Stream, TransformStream
from diffusion_core.sampling.loop import generate
from diffusion_core.tiling import tiled
from diffusion_core.training.trainer import Transform
from tasks.common.errors import DataError
from tasks.common.lazy import Lazy
from tasks.config.params import Upscaler, Upscaling
from tasks.dataset.padding import any_padding, padding_maps
from tasks.dataset.shards import ShardDataset
from tasks.models import inputs
from tasks.models.conditioning import SIZE, smaller_picture
from tasks.models.inputs import Examples
from tasks.models.modality import Model

STRIDE = 2  # crops begin at a pixel of the smaller picture


def sizes(smallest: int, largest: int) -> list[int]:
    """The sizes of a cascade after the first: `smallest` doubled until it is `largest`."""
    doubled = [2 * smallest]
    while doubled[-1] < largest:
        doubled.append(2 * doubled[-1])
    return doubled


class CropDataset(Dataset[tuple[list[int], Tensor, Cond]]):
    """Crops in data units by index, each with the same crop of the picture at half the size.

    They are of the persons whose own square is at least as large as the cascade's size; an enlarged picture would teach the
    model blur. Then their mirror images, then further crops of all these. The place of a crop is a function of its index.
    Raises DataError if nobody has the pixels of a size.
    """

    def __init__(self, dataset: ShardDataset, config: Upscaler, smallest: int, memory_gb: float = 0.0) -> None:
        assert config.size is not None
        self.config, self.sizes = config, sizes(smallest, config.size)
        sides = dataset.sides()
        self.shown = [(size, i) for size in self.sizes for i, side in enumerate(sides) if side >= size]
        missing = [size for size in self.sizes if not any(shown == size for shown, _ in self.shown)]
        if missing:
            raise DataError(
                f"No person has {missing[0]} pixels along the side, so enlarging to that size cannot be learned: the "
                f"largest has {max(sides, default=0)}. Set upscaler.size to less, or give larger pictures."
            )
        self.dataset = dataset
        self.metas = dataset.metas()
        self.padded = any_padding(self.metas)
        self.in_memory = sum(3 * size**2 for size, _ in self.shown) <= memory_gb * 1e9
        self._pictures = [self._picture(n) for n in range(len(self.shown))] if self.in_memory else []

    @property
    def uncopied(self) -> int:
        """How many examples there are with one crop of each picture and mirror image."""
        return len(self.shown) * (2 if self.config.mirror else 1)

    def __len__(self) -> int:
        return self.uncopied * self.config.crops

    @property
    def keys(self) -> Sequence[str]:
        """The sample key of each example."""
        return Lazy(len(self), lambda i: self.dataset.key(self.shown[i % len(self.shown)][1]))

    def read(self, indices: Tensor) -> Examples:
        """The crops of indices `[B]`, with conditions `map:low` (half as large, in data units) and `vec:size` (pixels).

        If any picture has padding, which is to have no weight, `weight:x` is 0 there and 1 elsewhere.
        """
        count, side = len(self.shown), self.config.crop
        u = rng.uniform((2,), rng.fold(self.config.seed, Stream.CROP), indices)
        crops, weights = [], []
        for index, place in zip(indices.tolist(), u.tolist(), strict=True):
            picture = self._pictures[index % count] if self.in_memory else self._picture(index % count)
            top, left = (STRIDE * int(share * ((len(picture) - side) // STRIDE + 1)) for share in place)
            crop = picture[top : top + side, left : left + side]
            mirrored = index % self.uncopied >= count
            crops.append(crop[:, ::-1] if mirrored else crop)
            if self.padded:
                real = 1 - padding_maps([self.metas[self.shown[index % count][1]]], len(picture))[0]
                part = real[:, top : top + side, left : left + side]
                weights.append(part.flip(-1) if mirrored else part)
        x0 = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
        size = torch.tensor([self.shown[i % count][0] for i in indices.tolist()])
        cond = {LOW: avg_pool2d(x0, 2), SIZE: size}
        return Examples(x0, cond | {WEIGHT: torch.stack(weights)} if self.padded else cond)

    def _picture(self, n: int) -> np.ndarray:
        size, i = self.shown[n]
        return self.dataset.picture(i, size)

    def __getitem__(self, rows: list[int]) -> tuple[list[int], Tensor, Cond]:
        batch = self.read(torch.tensor(rows))
        return rows, batch.x0, batch.cond


def transform(config: Upscaler, codec: Affine | Latent) -> Transform:
    """The transform of training batches: the smaller picture in the network's units, with noise of a random level, doubled."""

    def transformed(x0: Tensor, cond: Cond, seed: int, ids: Tensor) -> tuple[Tensor, Cond]:
        sigma = config.low_noise * rng.uniform((), rng.fold(seed, TransformStream.CONDITION_LEVEL), ids)
        noise_seed = rng.fold(seed, TransformStream.CONDITION_NOISE)
        given = smaller_picture(codec.encode(cond[LOW]), cond[SIZE], sigma, noise_seed, ids)
        return x0, _weighted(cond) | given

    return transformed


def examples(model: Model, crops: CropDataset, indices: Tensor) -> Examples:
    """Crops in the network's units, with conditions as the network gets them, without noise on the smaller picture."""
    raw = crops.read(indices)
    low = model.codec.encode(raw.cond[LOW])
    given = smaller_picture(low, raw.cond[SIZE], torch.zeros(len(low)), 0, torch.arange(len(low)))
    return Examples(model.codec.encode(raw.x0), _weighted(raw.cond) | given)


def _weighted(cond: Cond) -> Cond:
    return {key: value for key, value in cond.items() if key == WEIGHT}


def upscale(
    model: Model, pictures: np.ndarray, settings: Upscaling, seed: int, ids: Tensor, label: str | None = None
) -> np.ndarray:
    """Pictures uint8 `[n, s, s, 3]` at the upscaler's size, uint8 `[n, size, size, 3]`, doubled as often as needed.

    Picture i is a function of (model, picture i, seed, ids[i], settings but for the batch) alone. Its noise is drawn for
    the whole picture, tiles see parts of it, and their estimates are blended at every step (`tiling.tiled`). Raises DataError
    if a picture is not finite.
    """
    config = model.config
    assert isinstance(config, Upscaler) and config.size is not None
    if not len(pictures):
        return np.zeros((0, config.size, config.size, 3), np.uint8)
    denoiser = tiled(model.as_sampled(model.denoiser), settings.tile, settings.overlap)
    made = model.sampler(settings.sampling)
    device = next(model.denoiser.parameters()).device
    enlarged = []
    with tqdm(total=len(pictures), desc=label, unit="picture", mininterval=2, disable=label is None) as bar:
        for start in range(0, len(pictures), settings.batch):
            chunk = slice(start, start + settings.batch)
            part, part_ids = pictures[chunk], ids[chunk].to(device)
            for size in sizes(part.shape[1], config.size):
                x = torch.from_numpy(part).permute(0, 3, 1, 2).float().to(device) / 127.5 - 1
                pixels, sigma = torch.full((len(x),), size), torch.full((len(x),), settings.low_noise, device=device)
                cond = smaller_picture(model.codec.encode(x), pixels, sigma, rng.fold(seed, size, 1), part_ids)
                with model.autocast():
                    z = generate(
                        denoiser, made.visited, made.step, (3, size, size), rng.fold(seed, size), part_ids, cond,
                        noise=model.recipe.noise,
                    )  # fmt: skip
                values = model.codec.decode(z).cpu()
                if not values.isfinite().all():
                    raise DataError("The upscaler gives pictures that are not finite: its training has failed.")
                part = inputs.as_pictures(values)
            enlarged.append(part)
            bar.update(len(part))
    return np.concatenate(enlarged)
