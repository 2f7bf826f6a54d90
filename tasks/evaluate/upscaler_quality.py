"""How well the upscaler enlarges held-out pictures that were reduced, whatever its recipe: diffusion beside a GAN.

The pictures of people who have the pixels are reduced to the size of the picture model's and enlarged again. Metrics:

    upscaler.psnr, .ssim                      against the originals; blur scores more than a sharp sample
    upscaler.psnr_bicubic, .ssim_bicubic      the same of bicubic interpolation
    upscaler.edge_kernel_distance, _bicubic   kernel distance of edges to the originals (0: the same law), which blur raises
    upscaler.found, .within_0.2, ...          what MediaPipe reads in the enlarged pictures, see `pose_accuracy`
    upscaler.seconds                          a picture, on this machine
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_core.training.reconstruction import psnr
from tasks import paths
from tasks.common import machine
from tasks.common.subset import evenly_spaced
from tasks.config.params import Params
from tasks.dataset.padding import padding_maps
from tasks.dataset.shards import ShardDataset
from tasks.evaluate import pose_accuracy
from tasks.metrics.features import edges
from tasks.metrics.kid import KID_NEEDS, kid
from tasks.metrics.ssim import ssim
from tasks.models import modality, model_file, upscaler
from tasks.plots import drawing

MOST = 96  # pictures


def measure(params: Params, root: Path, held_out: ShardDataset, sheet: Path) -> dict[str, float]:
    """The metrics; none if there is no upscaler, or nobody who has the pixels. Draws pictures into `sheet`.

    Raises UserError if the landmarker's model is missing.
    """
    size = params.upscaler.size
    if size is None:
        return {}
    large = [i for i, side in enumerate(held_out.sides()) if side >= size]
    if not large:
        return {}
    chosen = held_out.take([large[i] for i in evenly_spaced(len(large), MOST)])
    originals, small = chosen.pictures_uint8(size), chosen.pictures_uint8(params.pictures.size)
    model = model_file.load(paths.model_folder(root, paths.UPSCALER), modality.device())
    began = time.perf_counter()
    ids = torch.arange(len(chosen))
    enlarged = upscaler.upscale(model, small, params.sample.upscaler, 0, ids, "enlarge")
    numbers = {"upscaler.seconds": (time.perf_counter() - began) / len(chosen)}
    smooth = np.stack(
        [np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BICUBIC)) for one in small]
    )
    real = 1 - padding_maps(chosen.metas(), size)
    target = _as_tensor(originals)
    for suffix, pictures in (("", enlarged), ("_bicubic", smooth)):
        x = _as_tensor(pictures)
        numbers[f"upscaler.psnr{suffix}"] = float(psnr(2 * x - 1, 2 * target - 1, real).mean())
        numbers[f"upscaler.ssim{suffix}"] = float(ssim(x, target, real).mean())
        if len(chosen) >= KID_NEEDS:
            features = [edges(some.astype(np.float32) / 255) for some in (pictures, originals)]
            numbers[f"upscaler.edge_kernel_distance{suffix}"] = kid(*features).value
    workers = params.extract.workers or machine.cores()
    read = pose_accuracy.read_poses(enlarged, root / params.extract.model, params.extract.min_confidence, workers)
    columns = zip(smooth, enlarged, originals, strict=True)
    tiles = [np.concatenate([drawing.enlarge(one, 128) for one in row], axis=1) for row in list(columns)[:12]]
    drawing.save_png(sheet, drawing.sheet(tiles, 3, ["bicubic | enlarged | original"] * len(tiles)))
    return numbers | pose_accuracy.metrics("upscaler", read, chosen.poses())


def _as_tensor(pictures: np.ndarray) -> Tensor:
    """Pictures `[n, s, s, 3]` as `[n, 3, s, s]` in 0 ... 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
