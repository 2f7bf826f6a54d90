"""Stage `codec_quality`: what is lost when pictures become latents and come back? Writes reports/codec_quality/.

The reconstructions of held-out pictures are compared with the originals (PSNR, SSIM), and MediaPipe reads the poses in them.
The share of joints that it finds where they were is the most that any model of these latents can reach. Reconstructions of
training pictures are no better if the codec has not overfitted. Padding, which codecs do not learn, does not count.

If there is an upscaler, it is measured here too, see `upscaler_quality`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion_core.codecs import Latent
from diffusion_core.nets.autoencoder import perplexity
from diffusion_core.training.reconstruction import psnr
from tasks import paths
from tasks.common import machine
from tasks.common.files import new_folder, write_json
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset.padding import padding_maps
from tasks.dataset.pose_map import pose_map
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import load_splits
from tasks.evaluate import pose_accuracy, upscaler_quality
from tasks.metrics.ssim import ssim
from tasks.models import codec, inputs
from tasks.models.conditioning import KEYS, at_latents
from tasks.plots import drawing

MOST = 256  # pictures of each set
SHOWN = 12  # in the sheet


def run(params: Params, root: Path) -> None:
    """Write codec_quality.json (flat metrics, empty for a model of pixels without an upscaler) and sheets of pictures.

    Raises DataError if codec or shards are missing, UserError if the landmarker's model is missing.
    """
    latent = codec.load(paths.model_folder(root, codec.NAME) / paths.MODEL_FILE)
    numbers: dict[str, float] = {}
    with new_folder(root / paths.CODEC_QUALITY) as folder:
        if latent is not None:
            train, held_out = (_chosen(split.pictured(), params.pictures.size) for split in load_splits(root))
            if len(held_out.x):
                numbers = _quality(latent, train, held_out)
                again = inputs.as_pictures(_again(latent, held_out))
                workers = params.extract.workers or machine.cores()
                read = pose_accuracy.read_poses(
                    again, root / params.extract.model, params.extract.min_confidence, workers
                )
                accuracy = pose_accuracy.metrics("codec", read, held_out.poses)
                numbers |= accuracy
                _sheet(held_out.x, again, folder / "codec.png")
        held = load_splits(root)[1].pictured()
        numbers |= upscaler_quality.measure(params, root, held, folder / "upscaler.png")
        write_json(folder / "codec_quality.json", {"metrics": numbers})


@dataclass(frozen=True)
class Pictures:
    """Pictures of one set."""

    x: Tensor  # in -1 ... 1, [n, 3, s, s]
    poses: np.ndarray  # [n, 33, 3]
    maps: Tensor  # of the poses
    real: Tensor  # which pixels are no padding, [n, 1, s, s]


def _chosen(split: ShardDataset, size: int) -> Pictures:
    """At most MOST pictures of a split."""
    chosen = split.take(evenly_spaced(len(split), MOST))
    pictures, poses = torch.from_numpy(chosen.pictures_uint8(size)), chosen.poses()
    x = pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
    return Pictures(x, poses, pose_map(poses, size, chosen.about["margin"]), 1 - padding_maps(chosen.metas(), size))


@torch.no_grad()
def _again(latent: Latent, pictures: Pictures) -> Tensor:
    return latent.decode(latent.encode(pictures.x), at_latents({KEYS["pose_map"]: pictures.maps}, latent.factor))


def _quality(latent: Latent, train: Pictures, held_out: Pictures) -> dict[str, float]:
    """PSNR and SSIM of the reconstructions, and how many codes of a codebook are used as if equally often."""
    numbers = {}
    for name, pictures in (("heldout", held_out), ("train", train)):
        x, real = pictures.x, pictures.real
        if len(x):
            again = _again(latent, pictures).clamp(-1, 1)
            numbers[f"codec.psnr_{name}"] = float(psnr(again, x, real).mean())
            numbers[f"codec.ssim_{name}"] = float(ssim(again / 2 + 0.5, x / 2 + 0.5, real).mean())
    book = latent.net.codebook
    if book is not None:
        z = latent.encode(held_out.x) * latent.scale + latent.mean
        numbers["codec.perplexity"] = perplexity(book.nearest(z), len(book.vectors))
        numbers["codec.codes"] = float(len(book.vectors))
    return numbers


def _sheet(originals: Tensor, again: np.ndarray, path: Path) -> None:
    """Each original beside its reconstruction."""
    pairs = zip(inputs.as_pictures(originals[:SHOWN]), again[:SHOWN], strict=True)
    tiles = [np.concatenate([drawing.enlarge(a, 128), drawing.enlarge(b, 128)], axis=1) for a, b in pairs]
    drawing.save_png(path, drawing.sheet(tiles, 4, ["original | reconstruction"] * len(tiles)))
