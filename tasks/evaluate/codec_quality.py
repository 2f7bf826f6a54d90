"""Stage `codec_quality`: what is lost when pictures become latents and come back? Writes reports/codec_quality/.

The reconstructions of held-out pictures are compared with the originals (PSNR, SSIM), and MediaPipe reads the poses in them.
The share of joints that it finds where they were is the most that any model of these latents can reach. Reconstructions of
training pictures are no better if the codec has not overfitted. Padding, which codecs do not learn, does not count.
"""

from __future__ import annotations

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
from tasks.dataset.shards import ShardDataset
from tasks.dataset.splits import load_splits
from tasks.evaluate import pose_accuracy
from tasks.metrics.ssim import ssim
from tasks.models import codec, modality
from tasks.plots import drawing

MOST = 256  # pictures of each set
SHOWN = 12  # in the sheet


def run(params: Params, root: Path) -> None:
    """Write codec_quality.json (flat metrics, empty for a model of pixels) and a sheet of originals and reconstructions.

    Raises DataError if codec or shards are missing, UserError if the landmarker's model is missing.
    """
    latent = codec.load(paths.model_folder(root, codec.NAME) / paths.MODEL_FILE)
    numbers: dict[str, float] = {}
    with new_folder(root / paths.CODEC_QUALITY) as folder:
        if latent is not None:
            train, held_out = (_chosen(split.pictured(), params.pictures.size) for split in load_splits(root))
            if len(held_out[0]):
                numbers = _quality(latent, train, held_out)
                again = modality.as_pictures(_again(latent, held_out[0]))
                workers = params.extract.workers or machine.cores()
                read = pose_accuracy.read_poses(
                    again, root / params.extract.model, params.extract.min_confidence, workers
                )
                accuracy = pose_accuracy.metrics("codec", read, held_out[1])
                numbers |= accuracy
                _sheet(held_out[0], again, folder / "codec.png")
        write_json(folder / "codec_quality.json", {"metrics": numbers})


def _chosen(split: ShardDataset, size: int) -> tuple[Tensor, np.ndarray, Tensor]:
    """At most MOST pictures in -1 ... 1, `[n, 3, size, size]`, their poses, and which pixels are real, `[n, 1, size, size]`."""
    chosen = split.take(evenly_spaced(len(split), MOST))
    pictures = torch.from_numpy(chosen.pictures_uint8(size))
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1, chosen.poses(), 1 - padding_maps(chosen.metas(), size)


@torch.no_grad()
def _again(latent: Latent, x: Tensor) -> Tensor:
    return latent.decode(latent.encode(x))


def _quality(
    latent: Latent, train: tuple[Tensor, np.ndarray, Tensor], held_out: tuple[Tensor, np.ndarray, Tensor]
) -> dict[str, float]:
    """PSNR and SSIM of the reconstructions, and how many codes of a codebook are used as if equally often."""
    numbers = {}
    for name, (x, _, real) in (("heldout", held_out), ("train", train)):
        if len(x):
            again = _again(latent, x).clamp(-1, 1)
            numbers[f"codec.psnr_{name}"] = float(psnr(again, x, real).mean())
            numbers[f"codec.ssim_{name}"] = float(ssim(again / 2 + 0.5, x / 2 + 0.5, real).mean())
    book = latent.net.codebook
    if book is not None:
        z = latent.encode(held_out[0]) * latent.scale + latent.mean
        numbers["codec.perplexity"] = perplexity(book.nearest(z), len(book.vectors))
        numbers["codec.codes"] = float(len(book.vectors))
    return numbers


def _sheet(originals: Tensor, again: np.ndarray, path: Path) -> None:
    """Each original beside its reconstruction."""
    pairs = zip(modality.as_pictures(originals[:SHOWN]), again[:SHOWN], strict=True)
    tiles = [np.concatenate([drawing.enlarge(a, 128), drawing.enlarge(b, 128)], axis=1) for a, b in pairs]
    drawing.save_png(path, drawing.sheet(tiles, 4, ["original | reconstruction"] * len(tiles)))
